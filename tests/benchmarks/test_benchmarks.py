"""The benchmarks on toy sizes: that they compare, measure and print what they say. Never how fast anything is."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import imports, measure, memory, openbox, products, report, step, workloads

TOYS = {
    "W1 MLP": functools.partial(workloads.mlp, (6, 5, 4, 3), batch=2),
    "W2 convnet": functools.partial(workloads.convnet, 8, (1, 2, 2, 2), (4, 4, 3), batch=2),
    "W4 transformer": functools.partial(workloads.transformer, 8, time=4, batch=2, blocks=2, heads=2, vocabulary=5),
    "W6 LSTM": functools.partial(workloads.lstm, time=3, batch=2, units=4),
    "W10 2-2-2 network": functools.partial(workloads.worked_example, updates=5),
}


@pytest.fixture(scope="module", autouse=True)
def quick(usual_jax):
    """Each program is traced and compiled once, and nothing is forgotten in between."""
    usual_jax.setattr(measure, "TRACES", 1)
    usual_jax.setattr(measure, "COMPILES", 1)
    usual_jax.setattr(jax, "clear_caches", lambda: None)
    optimised = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", optimised)


@pytest.fixture(scope="module")
def table(usual_jax):
    return step.run(pairs=2, builds=TOYS)


@pytest.mark.slow
def test_every_workload_has_its_row_and_every_row_its_numbers(table):
    names = [row.name for row in table.rows]
    assert [n for n in names if n in TOYS] == list(TOYS)
    assert "W1 MLP, eager" in names
    for row in table.rows:
        assert not row.refused
        if row.name in TOYS:
            assert set(row.cells) >= set(step.COLUMNS)
            assert all(cell.value > 0 for cell in row.cells.values())
        if "PyTorch" not in row.name:
            low, high = row.cells["time"].quartiles
            assert low <= row.cells["time"].value <= high


PROGRAMS = {
    "W11 MLP": functools.partial(workloads.deep_mlp, 3, 4, 2),
    "W12 LSTM": functools.partial(workloads.unrolled_lstm, 4, 2, 4),
    "W13 jitted layer": functools.partial(workloads.jitted_layers, 3, 4, 2),
}


@pytest.mark.slow
def test_our_programs_are_about_as_long_as_those_of_jax():
    rows = step.programs(pairs=1, builds=PROGRAMS).rows
    assert [row.name for row in rows] == list(PROGRAMS)
    for row in rows:
        assert 0 < row.cells["equations"].value < 1.2
        assert 0 < row.cells["stablehlo"].value < 1.2


def test_a_peer_that_is_not_installed_is_skipped_by_name(monkeypatch):
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert str(step.torch_row("W10", 1.0).cells["time"]) == "skipped: torch is not installed"


@pytest.mark.slow
def test_the_table_prints_as_markdown_and_as_json(table):
    lines = report.markdown(table).splitlines()[2:]
    assert len(lines) == len(table.rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "≤ 1.02: " in lines[2]
    assert json.loads(json.dumps(report.as_json(table)))["rows"][0]["time"]["target"] == "≤ 1.02"


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (report.Target(1.0), 1.0, "met"),
        (report.Target(1.0), 1.01, "missed"),
        (report.Target(1.0), float("nan"), "missed"),
        (report.Target(500, at_least=True), 499.0, "missed"),
        (report.Target(500, at_least=True), 501.0, "met"),
    ],
)
def test_targets(target, value, verdict):
    assert target.verdict(value) == verdict
    assert str(report.Cell(value, target=target)).endswith(f"({target}: {verdict})")


def test_results_that_differ_are_not_timed(monkeypatch):
    def wrong():
        f = lambda api: lambda x: x * (1.0 if api is jax else 1.0 + 1e-9)
        return workloads.Workload(f, (jnp.ones(3),))

    monkeypatch.setattr(measure, "take_turns", lambda *_: pytest.fail("it was timed"))
    (row,) = step.run(pairs=1, builds={"W1 wrong": wrong}).rows
    assert row.refused
    assert str(row.cells["time"]) == "not timed: results differ by 1.0e-09 in float64"


def test_the_two_sides_take_turns_in_going_first():
    calls = []
    sides = [lambda side=side: calls.append(side) or jnp.zeros(()) for side in range(2)]
    times = measure.take_turns(*sides, pairs=3)
    assert len(times.ours) == len(times.theirs) == 3
    assert calls[-6:] == [0, 1, 1, 0, 0, 1]


def test_the_network_of_w10_is_the_published_one():
    with jax.enable_x64(True):
        workload = workloads.worked_example()
        weights, x, target = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, str), float), workload.args)
        trained = jax.jit(workload.program(jax))(weights, x, target)
        for w, b in zip(trained, workloads.BIASES, strict=True):
            x = jax.nn.sigmoid(x @ w + b)
    np.testing.assert_allclose(x, [0.01591362044355068, 0.9840642735146238], rtol=1e-12)


def test_the_command_prints_and_writes(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(command.TABLES, "step", functools.partial(step.run, builds=TOYS))
    assert command.main(["step", "--only", "w6", "--pairs", "1", "--json", str(tmp_path / "out.json")]) == 0
    assert "| W6 LSTM |" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["workload"] for row in written["tables"][0]["rows"]] == ["W6 LSTM"]
    assert written["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["stop"], "no table stop"), (["--pairs", "0"], "at least 1"), (["step", "--only", "W99"], "no workload W99")],
)
def test_the_command_refuses_what_it_does_not_know(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def policies(usual_jax):
    make = functools.partial(workloads.lstm, time=6, batch=2, units=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "STOCK", ("dots_saveable",))
        patch.setattr(memory, "BUDGETS", (0.001,))
        rows = list(memory.model_rows("W6 LSTM", memory.Model(make, ("net",), {}), pairs=1))
    return report.Table("policies", memory.COLUMNS, rows)


@pytest.mark.slow
def test_each_policy_has_its_row_beside_jax(policies):
    labels = [row.name.partition(": ")[2] for row in policies.rows]
    assert labels[:3] == ["jax", "jax, dots_saveable", "jax, by hand (net)"]
    assert labels[3:6] == ["funcbp, needed", "funcbp, min_cut_cheap", "funcbp, min_cut"]
    assert labels[7:] == ["funcbp, inputs", "funcbp, by hand"]
    assert "Budget" in labels[6] and policies.rows[6].cells["time"].remark == "cannot be met"
    counted = [(label, row) for label, row in zip(labels, policies.rows, strict=True) if "contractions" in row.cells]
    again = {label: row.cells["contractions"].value for label, row in counted}
    assert again["jax, dots_saveable"] == 1.0
    assert again["funcbp, min_cut_cheap"] == pytest.approx(5 / 6)  # of the cotangent of [x h] the half that is h's
    assert again["funcbp, inputs"] == pytest.approx(7 / 6)  # and one of three contractions per step again
    assert not any(row.refused for row in policies.rows)


@pytest.mark.slow
def test_policies_are_drawn_as_points(policies):
    (ax,) = memory.draw(policies).axes
    assert len(ax.collections) == len(policies.rows) - 1  # the budget that cannot be met
    assert ax.get_title() == "W6 LSTM"


def test_snapshots_are_counted():
    assert memory.counted(1000, 10) == (12, 3.64)


@pytest.mark.slow
def test_the_open_box_has_its_rows():
    mlp = dict(sizes=(6, 5, 4, 3), batch=2)
    transformer = dict(d=8, time=4, batch=2, blocks=2, heads=2, vocabulary=5)
    builds = [
        lambda: openbox.norms_of_mlp(**mlp),
        lambda: openbox.norms_of_transformer(**transformer),
        lambda: openbox.feedback("random", **mlp),
        lambda: openbox.feedback("signs", **mlp),
        lambda: openbox.direct(8, 3, 6, 4, 2),
        lambda: openbox.whether(**mlp),
        lambda: openbox.checked(jnp.sin, (jnp.float32(0.3),)),
        lambda: openbox.errors(**transformer),
    ]
    toys = {n: (b, target) for b, (n, (_, target)) in zip(builds, openbox.ROWS.items(), strict=True)}
    table = openbox.run(2, rows=toys, sizes=transformer)
    assert [row.name for row in table.rows] == [*openbox.ROWS, *openbox.LOOKS]
    assert all(cell.value > 0 for row in table.rows for cell in row.cells.values())
    assert openbox.run(2, only=["W4"], rows=toys, sizes=transformer).rows[0].name == "W4 all deltas as norms"


@pytest.mark.slow(once=[])
def test_what_the_import_adds():
    (row,) = imports.run(pairs=1).rows
    assert row.cells["time"].value > 0 and 50 < row.cells["modules"].value <= 120
    assert imports.run(pairs=1, only=["W1"]).rows == []


def test_products_are_timed_by_ways_that_agree(monkeypatch):
    monkeypatch.setattr(products, "LAYERS", ((2, 3, 4, 5),))
    monkeypatch.setattr(products, "LOOPS", ((1, 3, 4), (2, 3, 4)))
    monkeypatch.setattr(products, "IMAGES", (2, 4, 4, 32))
    monkeypatch.setattr(products, "SMALL", 8)
    rows = products.run(pairs=1).rows
    first, *_ = kinds = [(row.name.split(",")[0], "1 rows" in row.name) for row in rows]
    assert "W̄" in first[0] and [one for _, one in kinds[:3]] == [False, True, False]
    assert ["way back" in name for name, _ in kinds[3:]] == [True] * (len(products.KERNELS) + 1) + [False] * 14
    assert [row.name.count("scan") for row in rows[-12:]] == [0, 1] * 6
    assert all(row.cells["time"].value > 0 for row in rows)
    assert products.run(pairs=1, only=["W1"]).rows == []
    with pytest.raises(AssertionError):
        products.compared("two ways that differ", jnp.sin, jnp.cos, [jnp.ones(2)], 1)
