"""`funcbp check`: what it checks, what it says, and how it ends."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from funcbp.cli.check import run_check_command


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_functions.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "def loss(w, x): return jnp.sum(jnp.tanh(w * x))\n"
        "@jax.custom_vjp\n"
        "def bad(x): return x**2\n"
        "bad.defvjp(lambda x: (x**2, x), lambda x, ct: (ct * x,))\n"
        "def params(): return {'w': jnp.ones(3)}\n"
        "def of_params(p): return jnp.sum(p['w'] ** 2)\n"
        "def raises(x): raise RuntimeError('on purpose')\n"
        "number = 3\n"
    )
    (tmp_path / "wrong_module.py").write_text("1 / 0\n")
    (tmp_path / "damaged.npy").touch()
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4 junk")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # the command adds the folder
    monkeypatch.delitem(sys.modules, "my_functions", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "argv, code, said",
    [
        (["my_functions:loss", "--args", "float64[3]", "[1.0, 2.0, 3.0]", "--argnums", "0"], 0, "ok"),
        (["my_functions:bad", "--args", "0.5"], 1, "culprit: the custom_vjp rule of bad"),
        (["my_functions:of_params", "--args", "my_functions:params", "--order", "2"], 0, "(2nd)"),
        (["my_functions:bad", "--args", "0.5", "--json"], 1, '"ok": false'),
        (["my_functions:raises", "--args", "0.5"], 2, "could not be checked: RuntimeError: on purpose"),
        (["my_functions:nothing"], 2, "has no nothing"),
        (["my_functions:number"], 2, "is no function"),
        (["no_such_module:f"], 2, "cannot be imported"),
        (["my_functions"], 2, "must be written package.module:name"),
        (["my_functions:loss", "--args", "f64[3]", "f64[3]", "--argnums", "0"], 0, "f64[3]  ok"),
        (["my_functions:bad"], 2, "Arguments are given by --args"),
        (["my_functions:loss", "--args", "float[3]"], 2, "is no argument"),
        (["my_functions:loss", "--args", "?"], 2, "is no argument"),
        (["my_functions:loss", "--args", "data.npy"], 2, "cannot be read"),
        (["my_functions:loss", "--order", "5"], 2, "--help"),
        (["my_functions:loss", "--args", "damaged.npy"], 2, "damaged.npy cannot be read: "),
        (["my_functions:loss", "--args", "damaged.npz"], 2, "damaged.npz cannot be read: "),
        (["my_functions:loss", "--args", "my_functions:raises"], 2, "made no argument: TypeError: raises() missing 1"),
        (["wrong_module:f"], 2, "wrong_module cannot be imported: ZeroDivisionError: division by zero"),
        (["my_functions:loss", "--args", "0.5", "--seed", "-5"], 2, "'-5' is not a whole number of at least 0"),
        (["my_functions:loss", "--args", "0.5", "--seed", "9999999999"], 2, "'9999999999' is more than 2,147,483,647"),
        (["my_functions:loss", "--args", "0.5", "--samples", "1"], 2, "'1' is not a whole number of at least 2"),
        (["my_functions:loss", "--args", "0.5", "--tolerance", "nan"], 2, "'nan' is not a positive number"),
        (
            ["my_functions:loss", "--args", "0.5", "--backward", "math:pi"],
            2,
            "backward= is a funcbp.Backward, as Backward(residuals='inputs'), and was 3",
        ),
        (
            ["my_functions:loss", "--args", "0.5", "--vjp", "math:pi"],
            2,
            "vjp= is a function that is called as jax.vjp is, and was 3.14",
        ),
        (["--help"], 0, "usage"),
    ],
)
def test_the_command(module, capsys, argv, code, said):
    assert run_check_command(argv) == code
    streams = capsys.readouterr()
    assert said in (streams.err if code == 2 else streams.out)


def test_the_command_writes_junit(module, capsys):
    argv = ["my_functions:bad", "--args", "0.5", "--junit"]
    assert run_check_command([*argv, "report.xml"]) == 1
    suite = ElementTree.parse(module / "report.xml").getroot()
    failed = [case for case in suite if case.find("failure") is not None]
    assert (suite.tag, suite.get("failures"), len(suite)) == ("testsuite", "1", int(suite.get("tests")))
    assert [case.get("name") for case in failed] == ["x"] and "wanted 1" in failed[0].find("failure").get("message")
    assert "culprit" in failed[0].find("failure").text
    assert run_check_command([*argv, "no/folder/report.xml"]) == 2


def test_the_command_reads_files(module, capsys):
    np.save("x.npy", np.ones(3))
    assert run_check_command(["my_functions:loss", "--args", "x.npy", "x.npy"]) == 0
    np.savez("p.npz", w=np.ones(3))
    assert run_check_command(["my_functions:of_params", "--args", "p.npz", "--vjp", "jax:vjp"]) == 0
