"""`funcbp train text`: a run from end to end, in parts, by other ways to go backward, and what it refuses."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from funcbp import data, nets, train
from funcbp.cli import text as text_command
from funcbp.cli.main import main
from funcbp.learn.train.language_run import write_language_run

TINY = "--context 8 --width 8 --layers 1 --heads 2 --key-heads 1 --hidden 8 --batch-size 2 --evaluate 2 --no-plots"


@pytest.fixture(autouse=True)
def poems(tmp_path, monkeypatch):
    """A folder of small files, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_command, "SAMPLE", 4)
    Path("poems").mkdir()
    for i in range(12):
        Path("poems", f"{i}.txt").write_text(f"Poem {i}: a rose is a rose is {i * i} roses.\n" * 3)


def run(*more):
    return main(["train", "text", "poems", *TINY.split(), "--steps", "4", "--evaluate-every", "2", *more])


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_run_with_everything_to_look_at(capsys):
    looks = ["--noise-scale", "--cotangents", "--plan", "--accumulate", "2", "--bf16", "--tokens", "bpe:260"]
    assert run(*looks, "--mesh", f"data={jax.device_count()}") == 0
    out = capsys.readouterr().out
    assert "12 files, " in out and "whole files are held out" in out and "tokens (bpe, 260 of them)" in out
    assert "1 blocks of width 8, 2 heads on 1, context 8, bfloat16, 2,488 parameters" in out
    assert "loss: " in out and "bytes kept" in out  # the plan
    found = re.findall(r"update +(\d+)  loss [\d.]+  held out ([\d.]+) bits per byte  noise scale \S+ windows", out)
    assert [update for update, _ in found] == ["2", "4"] and all(3 < float(bits) < 12 for _, bits in found)
    assert out.count("cotangents: embedding ") == 2 and out.count("it writes '") == 1
    *evaluations, test = lines_of("runs/text-poems/metrics.jsonl")
    assert [round(e["validation_bits_per_byte"], 3) for e in evaluations] == [float(bits) for _, bits in found]
    assert f"Test {test['test_bits_per_byte']:.4f} bits per byte" in out
    names = {"metrics.jsonl", "params.npz", "text.json", "samples.txt"}
    assert {path.name for path in Path("runs/text-poems").iterdir()} == names
    about = json.loads(Path("runs/text-poems/text.json").read_text())
    assert len(about["pieces"]) == 260 and about["network"]["width"] == 8
    assert main(["sample", "runs/text-poems", "--length", "4", "--seed", "0"]) == 0  # what it wrote last, once more
    last = Path("runs/text-poems/samples.txt").read_text().partition("after 4 updates\n")[2]
    assert capsys.readouterr().out.endswith(last)


@pytest.mark.slow
def test_interrupted_and_gone_on_with_it_is_the_same(capsys, monkeypatch):
    assert run("--out", "whole") == 0
    log = text_command.Teller.log
    with monkeypatch.context() as patch:
        patch.setattr(text_command.Teller, "log", lambda *args, **kw: (log(*args, **kw), signal.raise_signal(2)))
        assert run("--out", "parts", "--checkpoint", "run.npz") == 130
    out, err = capsys.readouterr()
    assert "Interrupted: what was reached after 2 updates is kept." in err and "Results in parts" in out
    assert run("--out", "parts", "--checkpoint", "run.npz", "--resume") == 0
    parts, whole = (train.load_params(f"{out}/params.npz") for out in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    told = [[line.get("validation_loss") for line in lines_of(f"{out}/metrics.jsonl")] for out in ("parts", "whole")]
    assert told[0] == told[1] and len(told[0]) == 3
    capsys.readouterr()
    assert run("--checkpoint", "run.npz", "--resume", "--seed", "1") == 2
    assert "run.npz is of another training: its key is" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["feedback-alignment", "direct-feedback-alignment"])
def test_schemes_side_by_side(capsys, scheme):
    assert run("--credit", scheme) == 0
    out = capsys.readouterr().out
    assert f"Once more, by {scheme}" in out and f" update  backpropagation  {scheme}" in out
    first, *_, last = lines_of("runs/text-poems/metrics.jsonl")
    plain, other = first["validation_bits_per_byte"], first[f"{scheme}_validation_bits_per_byte"]
    assert np.isfinite(other) and plain != other and f"{scheme}_test_bits_per_byte" in last


def test_a_run_that_is_over_writes_again(capsys):
    """Of a network whose blocks add nothing and whose embedding has rows of one length: the likeliest is the last."""
    network = {"vocabulary": 256, "width": 8, "layers": 1, "heads": 2, "mlp": "gelu", "hidden": 8}
    prompt, tokens = np.array([97, 98], np.int32), data.Tokens("bytes", tuple(bytes([b]) for b in range(256)))
    params = nets.transformer(**network).init(jax.random.key(0), prompt)
    for layer in ("out", "down"):
        params["blocks"][layer]["kernel"] *= 0
    params["embedding"]["kernel"] /= np.linalg.norm(params["embedding"]["kernel"], axis=1, keepdims=True)
    Path("run").mkdir()
    write_language_run(Path("run"), params, network, 3, tokens, prompt)

    def wrote(*more):
        assert main(["sample", "run", *more]) == 0
        return capsys.readouterr().out

    assert wrote("--length", "5", "--temperature", "0") == "abbbbbb\n"
    assert wrote("--prompt", "\u00e9x\x1b", "--length", "1", "--temperature", "0") == "\u00e9x\\x1b\\x1b\n"
    text = wrote("--length", "30")
    assert wrote("--length", "30") == text != wrote("--length", "30", "--seed", "1") and text.startswith("ab")
    assert main(["sample", "run", "--prompt", ""]) == 2 and "--prompt is empty" in capsys.readouterr().err
    assert (
        main(["sample", "poems"]) == 2
        and "poems is not the folder of a run of `funcbp train text`" in capsys.readouterr().err
    )
    train.save_params("run/params.npz", {"embedding": params["embedding"]})
    assert main(["sample", "run"]) == 2 and "does not hold the parameters of" in capsys.readouterr().err
    Path("run/params.npz").write_bytes(b"PK")
    assert main(["sample", "run"]) == 2 and "run/params.npz is damaged" in capsys.readouterr().err
    Path("run/text.json").write_text("{}")
    assert main(["sample", "run"]) == 2 and "run/text.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "There is no file or folder nowhere"),
        (["poems", "--context", "1000"], "A window has 1000 tokens and one more to tell"),
        (["poems", "--tokens", "words"], "Tokens are bytes, characters, or bpe:N"),
        (["poems", "--width", "9"], "even multiple of the heads"),
        (["poems", "--key-heads", "3"], "See --width, --heads, --key-heads."),
        (["poems", "--credit", "feedback-alignment", "--checkpoint", "a.npz"], "--credit learns twice"),
        (["poems", "--noise-scale", "--evaluate", "1"], "needs --evaluate of at least 2"),
        (["poems", "--mesh", "data=3"], "has 3 devices, and there"),
        (["poems", "--resume"], "need --checkpoint FILE"),
        (["poems", "--steps", "0"], "not a whole number of at least 1"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_is_refused(capsys, argv, says):
    Path("poems/more.txt").write_text("And more. " * 20)
    assert main(["train", "text", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("funcbp: ") and err.count("\n") == 1


def test_what_is_learned_comes_first(capsys):
    assert main(["train", "--seed", "1", "text"]) == 2
    assert "comes first: funcbp train text [FILE|FOLDER]" in capsys.readouterr().err
