"""The command: a run from end to end, every kind of data and network, and what it says when something is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp
from funcbp import ops, plot, train
from funcbp.cli import train as train_command
from funcbp.cli.main import main
from funcbp.learn.train import job

FILES = {"metrics.jsonl", "params.npz", "run.json", "curves.png", "weights.png", "mistakes.png"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out what the tests of every kind look at, and what most of a short run's time goes into."""
    monkeypatch.setattr(train_command, "gradient_is_right", lambda *args: True)


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def refused(capsys, *argv):
    """The sentence with which a request is turned down."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.startswith("funcbp: ") and err.count("\n") == 1
    assert "Results" not in out
    return err


# --- runs -------------------------------------------------------------------------------------------------------------


def test_digits(capsys):
    assert main(["train", "digits", "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "digits: 64 inputs, 10 classes; 1,257 training, 180 validation, 360 test examples" in out
    assert "mlp 64-64-32-10, relu, 6,570 parameters" in out
    assert "cpu" in out
    checked = [line.split() for line in out.splitlines() if line.strip().startswith("dense_")]
    assert len(checked) == 6 and all(line[-1] == "ok" for line in checked)
    assert all(float(line[-3]) < 1e-10 and float(line[-2]) < 1e-6 for line in checked)
    accuracy = float(out.split("Test accuracy ")[1].split(" ")[0])
    assert accuracy > 80
    assert "true \\ predicted" in out
    folder = Path("runs/digits-mlp-64-32")
    assert f"Results in {folder}" in out
    assert {p.name for p in folder.iterdir()} == FILES
    assert all(p.read_bytes().startswith(PNG) for p in folder.glob("*.png"))
    *epochs, test = lines_of(folder / "metrics.jsonl")
    assert [e["epoch"] for e in epochs] == [0, 1, 2, 3]
    assert set(epochs[0]) == {"epoch", "loss", "validation_loss", "validation_accuracy", "seconds"}
    assert 100 * test["test_accuracy"] == pytest.approx(accuracy, abs=0.006)
    params = train.load_params(folder / "params.npz")
    assert params["dense_0"]["kernel"].shape == (64, 64) and params["dense_2"]["bias"].shape == (10,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["iris", "--network", "mlp:8", "--optimizer", "nesterov"], "Test accuracy"),
        (["breast-cancer", "--network", "mlp:", "--optimizer", "sgd"], "(the delta rule)"),
        (["digits", "--data", "wine", "--activation", "gaussian", "--optimizer", "momentum"], "wine: 13 inputs"),
        (["diabetes", "--network", "mlp:4", "--activation", "tanh"], "Test R²"),
        (["digits", "--network", "convnet", "--batch-size", "300"], "convnet for images of 8x8x1"),
        (["digits", "--network", "autoencoder:8", "--activation", "logistic"], "autoencoder 64-8-64, logistic"),
        (["iris", "--network", "autoencoder"], "autoencoder 4-2-1-2-4"),
    ],
    ids=lambda value: value[0] + "-" + value[2] if isinstance(value, list) else "",
)
def test_every_kind(capsys, argv, says):
    assert main(["train", *argv, "--epochs", "1", "--out", "here/it/is", "--learning-rate", "0.01", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert says in out and "rate 0.01" in out and "WRONG" not in out
    assert {p.name for p in Path("here/it/is").iterdir()} == FILES


@pytest.mark.slow
def test_files(capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    Path("table.csv").write_text("\n".join(f"{a},{b},{c},{int(a > 0)}" for a, b, c in x))
    assert main(["train", "table.csv", "--target", "4", "--network", "mlp:4", "--epochs", "1", "--no-plots"]) == 0
    assert "table: 3 inputs, 2 classes" in capsys.readouterr().out
    assert Path("runs/table-mlp-4/params.npz").exists()
    np.savez("images.npz", x=rng.normal(size=(60, 8, 8)), y=x[:, 0])
    assert main(["train", "--data", "images.npz", "--network", "convnet", "--epochs", "1", "--no-plots"]) == 0
    assert "images: 64 inputs, regression" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_modes_stops_and_records(capsys):
    """In two parts by a checkpoint, and whole: the same."""
    argv = ["train", "iris", "--network", "mlp:4", "--mode", "batch", "--optimizer", "irprop-plus", "--keep", "best"]
    argv += ["--stop", "correct", "--stop", "target:1e-9", "--metrics", "m.csv", "--mesh", f"data={jax.device_count()}"]
    argv += ["--no-plots"]
    assert main([*argv, "--epochs", "4", "--checkpoint", "run.npz", "--checkpoint-every", "2"]) == 0
    assert main([*argv, "--epochs", "9", "--checkpoint", "run.npz", "--resume", "--out", "parts"]) == 0
    out = capsys.readouterr().out
    assert "irprop-plus, rate 0.01, all examples at once, 9 epochs" in out and "the best by validation loss" in out
    assert f"Mesh        data={jax.device_count()} of " in out
    assert main([*argv, "--epochs", "9", "--out", "whole"]) == 0
    parts, whole = (train.load_params(f"{out}/params.npz") for out in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert [line["epoch"] for line in lines_of("parts/metrics.jsonl")][:-1] == list(range(10))
    assert Path("m.csv").read_text().splitlines()[0] == "epoch,loss,correct,validation_loss,validation_accuracy,seconds"
    assert len(Path("m.csv").read_text().splitlines()) == 10
    capsys.readouterr()
    assert "run.npz is there already, and would be lost" in refused(capsys, *argv, "--checkpoint", "run.npz")
    argv = [
        "train",
        "iris",
        "--network",
        "mlp:",
        "--mode",
        "online",
        "--stop",
        "target:100",
        "--out",
        "o",
        "--no-plots",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "example by example" in out and "1 epochs in" in out and "Stopped by target:100" in out


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_seed_decides_everything(capsys):
    for out in ("a", "b"):
        argv = ["train", "iris", "--network", "mlp:", "--epochs", "1", "--seed", "5", "--out", out, "--no-plots"]
        assert main(argv) == 0
    first, second = (train.load_params(f"{out}/params.npz") for out in ("a", "b"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_as_a_command():
    source = str(Path(funcbp.__file__).parent.parent)
    argv = [sys.executable, "-m", "funcbp", "train", "iris", "--network", "mlp:4", "--epochs", "2"]
    run = subprocess.run(
        argv,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": source, "PYTHONUTF8": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "Test accuracy" in run.stdout and "2 epochs" in run.stdout
    assert run.stderr == ""  # no progress bar where nobody watches
    assert {p.name for p in Path("runs/iris-mlp-4").iterdir()} == FILES


PETS = [
    (round(0.1 * i + 3 * (i % 3 == 0), 2), ("long", "short")[i % 2], ("cat", "dog", "newt")[i % 3]) for i in range(60)
]


def pets(name="pets.csv"):
    Path(name).write_text("weight,hair,kind\n" + "".join(f"{w},{h},{k}\n" for w, h, k in PETS))
    return name


@pytest.mark.slow
def test_a_file_of_ones_own_from_the_table_to_predictions(capsys, monkeypatch):
    """Classes by their names in what is printed, saved and predicted; the probabilities by hand."""
    without(monkeypatch, "matplotlib.figure")
    argv = ["train", pets(), "--target", "kind", "--network", "mlp:", "--epochs", "2", "--out", "run"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "There will be no pictures. Pictures are drawn by matplotlib" in out
    assert "Target column 'kind': 3 classes, cat 20, dog 20, newt 20" in out
    assert "Inputs 'weight', 'hair' (2 words)" in out and "newt" in out.partition("true \\ predicted")[2]
    assert {p.name for p in Path("run").iterdir()} == {"metrics.jsonl", "params.npz", "run.json"}
    Path("new.csv").write_text("hair;weight\nshort;4,5\nlong;0,1\n")
    assert main(["predict", "run", "new.csv"]) == 0
    header, *rows = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert header == ["prediction", "probability of cat", "probability of dog", "probability of newt"]
    run, params = json.loads(Path("run/run.json").read_text()), train.load_params("run/params.npz")
    x = (np.array([[4.5, 0, 1], [0.1, 1, 0]]) - run["inputs"][0]) / run["inputs"][1]
    e = np.exp(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), e / e.sum(1, keepdims=True), atol=1e-5)
    assert [row[0] for row in rows] == [("cat", "dog", "newt")[i] for i in e.argmax(1)]
    assert main(["predict", "run", "new.csv", "--out", "said.csv"]) == 0
    assert Path("said.csv").read_text().startswith("prediction,probability of cat,")
    Path("bad.csv").write_text("hair,weight\ncurly,1\n")
    assert "line 2, column 'hair': 'curly' is none of long, short." in refused(capsys, "predict", "run", "bad.csv")
    assert "new.csv is not the folder of a run" in refused(capsys, "predict", "new.csv", "new.csv")
    for place in (".", "no/said.csv"):
        assert f"funcbp: {place}: " in refused(capsys, "predict", "run", "new.csv", "--out", place)
    for change in ({"activation": "none"}, {"classes": ["cat"]}):
        Path("run/run.json").write_text(json.dumps({**run, **change}))
        assert "run.json is damaged" in refused(capsys, "predict", "run", "new.csv")
    Path("run/run.json").write_text(json.dumps({**run, "network": "mlp:3"}))
    assert "params.npz holds other parameters than those of" in refused(capsys, "predict", "run", "new.csv")
    Path("run/run.json").write_text("{}")
    assert "run.json is damaged" in refused(capsys, "predict", "run", "new.csv")


def test_predictions_are_in_the_targets_own_unit(capsys):
    x = np.arange(40.0)
    Path("line.csv").write_text("a,y\n" + "".join(f"{v},{1000 + 10 * v + 0.5}\n" for v in x))
    argv = ["train", "line.csv", "--network", "mlp:", "--epochs", "200", "--mode", "batch", "--optimizer", "lbfgs"]
    assert main([*argv, "--out", "run", "--no-plots"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "line.csv"]) == 0
    said = np.loadtxt(capsys.readouterr().out.splitlines()[1:])
    np.testing.assert_allclose(said, 1000.5 + 10 * x, rtol=1e-4)


def test_the_version_and_names_that_would_steer_a_terminal(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"funcbp {funcbp.__version__}, jax {jax.__version__}\n"
    assert "\\x1b[31mred.csv: No such file" in refused(capsys, "train", "\x1b[31mred.csv")


def test_ctrl_c_while_the_package_is_imported(capsys, monkeypatch):
    import _funcbp_command

    class Interrupted:
        def find_spec(self, name, *args):
            if name.startswith("funcbp.cli"):
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.startswith("funcbp.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert _funcbp_command.main() == 130
    assert capsys.readouterr().err == "\nInterrupted before there was anything to keep.\n"


# --- gradients that are wrong, learning that goes wrong ---------------------------------------------------------------


def test_a_wrong_backward_pass_stops_the_run(capsys, monkeypatch):
    @jax.custom_vjp
    def wrong(x):
        return jnp.tanh(x)

    wrong.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (0.999 * ct * (1 - jnp.tanh(x) ** 2),))
    monkeypatch.setitem(job.ACTIVATIONS, "tanh", wrong)
    assert main(["train", "iris", "--network", "mlp:4", "--activation", "tanh"]) == 1
    out, err = capsys.readouterr()
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.strip().startswith("dense_")}
    expected = {"dense_0/bias": "wrong", "dense_0/kernel": "wrong", "dense_1/bias": "ok", "dense_1/kernel": "ok"}
    assert verdicts == expected
    assert "The culprit: the custom_vjp rule of" in out and "wrong" in out.partition("The culprit")[2]
    assert "The gradient is WRONG, so nothing was trained." in err
    assert not list(Path("runs/iris-mlp-4").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_divergence_keeps_the_last_good_parameters(capsys):
    argv = ["train", "diabetes", "--network", "mlp:4", "--activation", "identity", "--optimizer", "sgd"]
    assert main([*argv, "--learning-rate", "1e4", "--epochs", "50", "--out", "out", "--no-plots"]) == 1
    out, err = capsys.readouterr()
    kept = int(err.split("The parameters of epoch ")[1].split(" ")[0])
    assert f"Learning diverged in epoch {kept + 1}, at " in err and "the loss is no longer a finite number" in err
    *epochs, _ = lines_of("out/metrics.jsonl")
    assert epochs[-1]["epoch"] == kept
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(train.load_params("out/params.npz")))
    assert "Results in out" in out


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_ctrl_c_keeps_what_was_reached(capsys, monkeypatch):
    fit = train.fit

    class Interrupts:
        def log(self, metrics, *, step):
            if step == 2:
                signal.raise_signal(signal.SIGINT)

    def interrupted(*args, log, **options):
        return fit(*args, log=[*log, Interrupts()], **options)

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.setattr("funcbp.learn.train.drive.FLOPS_PER_CALL", 1.0)  # an epoch a call
    assert main(["train", "iris", "--network", "mlp:4", "--out", "out"]) == 130
    out, err = capsys.readouterr()
    assert "Interrupted: the parameters of epoch 2 are kept." in err
    assert "Results in out" in out
    assert {p.name for p in Path("out").iterdir()} == FILES
    assert [line["epoch"] for line in lines_of("out/metrics.jsonl")] == [0, 1, 2, 2]


def test_ctrl_c_before_the_training(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "check", interrupted)
    assert main(["train", "iris"]) == 130
    assert "Interrupted before there was anything to keep." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_real_ctrl_c():
    source = str(Path(funcbp.__file__).parent.parent)
    argv = [sys.executable, "-u", "-m", "funcbp", "train", "iris", "--network", "mlp:", "--epochs", "1000000"]
    argv += ["--out", "run", "--no-plots"]
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONUTF8": "1"}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    ) as run:
        guard = threading.Timer(240, run.kill)
        guard.start()
        seen = ""
        while "to jax.grad" not in seen and (piece := run.stdout.read(1)):
            seen += piece
        while not (written := Path("run/metrics.jsonl")).exists() or b"\n" not in written.read_bytes():
            time.sleep(0.05)  # until an epoch is written; the last line may be half there
        run.send_signal(signal.SIGINT)
        out, err = run.communicate()
        guard.cancel()
    assert run.returncode == 130, err
    assert "are kept" in err and "Results in" in out
    *epochs, _ = lines_of("run/metrics.jsonl")
    assert epochs[-1]["epoch"] >= 1


# --- requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["learn"], "invalid choice: 'learn'"),
        (["train", "mnist"], "There is no data set 'mnist'; there are digits,"),
        (["train", "--network", "rnn"], "--network is mlp:SIZES, convnet or autoencoder:SIZES, and was 'rnn'."),
        (["train", "--network", "convnet:3"], "and was 'convnet:3'."),
        (["train", "--network", "mlp:64,,32"], "The sizes in --network mlp:64,,32 are wrong: '' is not a whole number"),
        (["train", "--network", "autoencoder:0"], "'0' is not a whole number of at least 1"),
        (["train", "iris", "--network", "convnet"], "A convnet reads images, and iris has none"),
        (["train", "--activation", "step"], "--activation: invalid choice: 'step'"),
        (["train", "--optimizer", "adagrid"], "--optimizer: invalid choice: 'adagrid'"),
        (["train", "--learning-rate", "fast"], "--learning-rate: 'fast' is not a positive number"),
        (["train", "--learning-rate", "nan"], "'nan' is not a positive number"),
        (["train", "--learning-rate", "-1"], "'-1' is not a positive number"),
        (["train", "--batch-size", "0"], "--batch-size: '0' is not a whole number of at least 1"),
        (["train", "--epochs", "1.5"], "--epochs: '1.5' is not a whole number of at least 1"),
        (["train", "--seed", "-1"], "--seed: '-1' is not a whole number of at least 0"),
        (["train", "--mode", "slow"], "--mode: invalid choice: 'slow'"),
        (["train", "--stop", "soon"], "--stop: there is no rule 'soon'; there are target, correct, plateau"),
        (["train", "--stop", "plateau:0.5"], "--stop: plateau counts epochs from 1, and got 0"),
        (["train", "--stop", "gl:x"], "--stop: 'x' is not a positive number"),
        (["train", "diabetes", "--stop", "correct"], "--stop correct is for classes"),
        (["train", "--metrics", "m.txt"], "--metrics: 'm.txt' is neither a .jsonl nor a .csv file"),
        (["train", "--resume"], "--resume and --checkpoint-every need --checkpoint FILE."),
        (["train", "--mesh", "data=64"], "A mesh of data=64 has 64 devices, and there"),
        (["train", "--mesh", "model=1"], "A mesh has the axes data, fsdp, tensor, and not model."),
        (["train", "--mesh", "data"], "--mesh: 'data' has no size; say how many devices, as in data=4."),
        (["train", "--coordinator", "here", "--process", "0", "--processes", "2"], "HOST:PORT, as in 10.0.0.1:9000"),
        (["train", "--process", "0"], "need all of --coordinator HOST:PORT, --process I and --processes N."),
        (
            ["train", "--coordinator", "localhost:1", "--process", "2", "--processes", "2"],
            "--process counts from 0, so with --processes 2 it is not 2.",
        ),
        (["train", "--speed", "9"], "Unrecognized arguments: --speed"),
        (["train", "missing.csv"], "missing.csv: No such file or directory."),
        (["train", "--data", "missing.npz"], "missing.npz: No such file or directory."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_requests(capsys, argv, message):
    assert message in refused(capsys, *argv)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file.csv is empty."),
        ("1,2,0\n1,2\n", "file.csv, line 2: 2 values, where line 1 has 3."),
        ("a,b,y\n1,2,0\n1,nan,0\n", "file.csv has missing values: 1 in column 'b'; the first is in line 3"),
        ("1,2,0\n1,2,1\n", "Which column of file.csv is to be learned? Say so by --target"),
        ("a,b,y\n1,2,0\n3,4,1\n", "file has 2 examples, and at least 10 are needed"),
    ],
)
def test_bad_files(capsys, text, message):
    Path("file.csv").write_text(text)
    assert message in refused(capsys, "train", "file.csv")


def test_bad_npz(capsys):
    np.savez("file.npz", images=np.zeros((3, 3)))
    assert "file.npz needs the arrays x and y" in refused(capsys, "train", "file.npz")
    np.savez("small.npz", x=np.zeros((20, 2, 2)), y=np.arange(20) % 2)
    assert "convnet halves the image 2 times" in refused(capsys, "train", "small.npz", "--network", "convnet")


def test_a_place_that_cannot_be_written_to(capsys):
    Path("file").write_text("")
    assert "file: File exists." in refused(capsys, "train", "iris", "--out", "file")
    assert "file/out: Not a directory." in refused(capsys, "train", "iris", "--out", "file/out")


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_full_disk(capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_params", full)
    assert main(["train", "iris", "--network", "mlp:4", "--epochs", "1", "--out", "out"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    why = "The results could not be written to out: No space left on device."
    assert re.fullmatch(rf"funcbp: {why} Nor to \S*funcbp-\S+: No space left on device\.", last)


@pytest.mark.usefixtures("unchecked")
def test_output_that_nobody_reads_any_more_loses_nothing(capfd, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["train", "iris", "--network", "mlp:", "--epochs", "1", "--out", "out", "--no-plots"]) == 0
    assert capfd.readouterr().err == "funcbp: Nobody reads the output any more. The training goes on.\n"
    assert {file.name for file in Path("out").iterdir()} == {"params.npz", "run.json", "metrics.jsonl"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_measurements_and_results_without_room_are_kept_elsewhere(capsys, monkeypatch):
    Path("full.jsonl").symlink_to("/dev/full")
    real = train.save_params

    def save_params(path, params):
        if path.parent == Path("out"):
            raise OSError(28, "No space left on device")
        real(path, params)

    monkeypatch.setattr(train, "save_params", save_params)
    given = ["--network", "mlp:4", "--epochs", "3", "--out", "out", "--metrics", "full.jsonl", "--no-plots"]
    assert main(["train", "iris", *given]) == 1
    out, err = capsys.readouterr()
    assert "funcbp: The measurements could not be written to full.jsonl (No space left on device), so learning" in err
    place = Path(re.search(r"The results could not be written to out: No space .* They are in (\S+)\.\n", err)[1])
    assert {file.name for file in place.iterdir()} == {"params.npz", "run.json", "metrics.jsonl"}
    assert f"Results in {place}: params.npz" in out and main(["predict", str(place), "iris.csv"]) == 2
    shutil.rmtree(place)


@pytest.mark.parametrize(("library", "extra"), [("pandas", "data"), ("sklearn.datasets", "data"), ("tqdm", "progress")])
def test_without_an_extra_its_name_is_said_before_any_work(capsys, monkeypatch, library, extra):
    without(monkeypatch, library)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    Path("table.csv").write_text("a,y\n" + "1,0\n2,1\n" * 10)
    assert f'pip install "funcbp[{extra}]"' in refused(capsys, "train", "table.csv" if library == "pandas" else "iris")


def without(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # the import of what stands there as None fails


COMMANDS = ["", "train", "train text", "predict", "sample", "coverage", "balance", "check", "reproduce", "play"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_defaults_that_say_something(capsys, command):
    try:
        code = main([*command.split(), "--help"])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr().out
    assert code == 0 and "None" not in out and "False" not in out and "==SUPPRESS==" not in out
    assert command not in ("train", "train text", "sample") or "(default: 0)" in out


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in (
        "digits",
        "breast-cancer",
        "convnet",
        "autoencoder",
        "nesterov",
        "gaussian",
        "adam 0.001",
        "quickprop",
        "plateau:10",
    ):
        assert word in out
    assert all(hasattr(ops, name) for name in job.ACTIVATIONS)
    assert plot.__doc__
