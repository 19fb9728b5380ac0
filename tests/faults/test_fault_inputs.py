"""Command lines and tensors that hypothesis makes up: refused in one line with exit code 2, nothing written, nothing
executed, or understood."""

import argparse
import contextlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import ledger
import pytest
import torch
from conftest import ROOT, load_script
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import CIRCLE, SCRIPTS, without_make

from varpro.paper import __main__ as paper
from varpro.paper import work
from varpro.runs.limits import Limit
from VarPro_resnet import Experiment as resnet_experiment
from VarPro_resnet import runs as resnet_runs

AWKWARD = [
    *("", " ", "-1", "0", "1e400", "-inf", "nan", "inf", "1e-400", "0x10", "1_0", "１", "abc", "é", "None", "true"),
    *("\u2028", "a\nb", "\x1b[31m", "'", '"', "$(touch pwned)", "`touch pwned`", "; touch pwned", "../x", "/", "a/b"),
    *("." * 300, "\udcff", "9" * 5000, "-", "--", "@file", "%s", "{}", "%(default)s", "\\", "-1e3", "1.5", "0.0"),
]
TEXTS = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=8),  # no argument can hold a NUL
    st.floats().map(repr),
    st.integers(-(10**12), 1000).map(str),
)


EXAMPLES, FILES_OF_TENSORS = (10, 60), (30, 200)  # in the usual suite and in the long run


class Accepted(Exception):
    """The script has understood, and would compute now."""


def _accept(*_: object, **__: object) -> None:
    raise Accepted


@pytest.fixture(scope="module")
def programs() -> dict[str, tuple[Callable, list[str]]]:
    """Every command, which stops where it would compute, and the options it has."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VARPRO_RESULTS", "results")
        for name in (*DRAWN, "mean field"):
            script = load_script(SCRIPTS.get(name, "Mean_field_limit/Experiment.py"))
            patch.setattr(script, "perform", _accept)
            found[name] = script.main, _options(script.parser())
        patch.setattr(resnet_runs, "perform", _accept)
        found["resnet"] = resnet_experiment.main, _options(resnet_experiment.parser())
        patch.setattr(Limit, "_solution", _accept)
        script = load_script(SCRIPTS["diffusion"])
        found["diffusion"] = script.main, _options(script.parser())
        for name in ("comparison_table", "check"):
            patch.setattr(paper.fidelity, name, _accept)
        patch.setattr(paper.cost, "plan", _accept)
        found["paper"] = paper.main, _options(paper.parser())
        patch.setattr(work, "perform", _accept)
        found["work"] = work.main, ["--section", "--seeds", "--batch"]
        yield found


def _options(of: argparse.ArgumentParser) -> list[str]:
    """The names of all options, and each choice with its option: texts that are made up hit hardly any."""
    names = [name for action in of._actions for name in action.option_strings]
    return names + [f"{a.option_strings[0]}={choice}" for a in of._actions for choice in a.choices or ()]


def answer(main: Callable, arguments: list[str]) -> str:
    """Run in an empty folder and check what is promised; returns the line of a refusal, or ``""``."""
    out, err = io.StringIO(), io.StringIO()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main([*arguments])
            code = 0
        except Accepted:
            return ""
        except SystemExit as stop:
            code = stop.code
        finally:
            left = os.listdir(folder)
            os.chdir(here)
        assert "pwned" not in left
        if code == 0:  # --help, or there was nothing to do
            return ""
        assert code == 2, err.getvalue()
        assert out.getvalue() == ""
        assert len(err.getvalue().splitlines()) == 1, err.getvalue()
        assert ": error: " in err.getvalue()
        assert not [str(each.message) for each in caught]
        assert left == []
    return err.getvalue()


DRAWN = ("circle", "biased", "two-timescale", "torus")
NAMES = ["circle", "mean field", "two-timescale", "torus", "resnet", "diffusion", "paper", "work"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=ledger.size(*EXAMPLES))
@given(data=st.data())
def test_any_command_line_is_understood_or_refused_in_one_line(name, data, programs):
    main, options = programs[name]
    arguments = [*CIRCLE] if name in DRAWN else []
    for _ in range(data.draw(st.integers(1, 3))):
        option = data.draw(st.sampled_from([*options, "", "positional", "--unknown"]))
        arguments += [option] if option else []
        arguments += data.draw(st.lists(TEXTS, max_size=2)) if option != "positional" and "=" not in option else []
    line = answer(main, arguments)
    ledger.count("command lines that hypothesis made up")
    ledger.count("of these command lines, refused", bool(line))


def _quietly(make: Callable, *arguments: object) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


TENSORS = st.one_of(
    st.builds(
        lambda shape, dtype, fill: torch.full(shape, 1).to(dtype) * fill,
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]),
        st.sampled_from([1, 0, -1, float("nan"), float("inf"), 1e300]),
    ),
    st.builds(lambda rows: torch.randn(rows, 2), st.integers(0, 6)),
    st.builds(lambda rows: torch.randn(rows), st.integers(0, 6)),
    st.builds(lambda rows: torch.randn(rows, 2).to_sparse(), st.integers(1, 3)),
    st.builds(lambda rows: _quietly(torch.randn(rows, 2).to_sparse_csr), st.integers(1, 3)),
    st.builds(lambda: _quietly(torch.quantize_per_tensor, torch.ones(3, 2), 0.1, 0, torch.qint8)),
    st.builds(lambda: torch.randn(3, 2, requires_grad=True)),
    st.builds(lambda: torch.empty(3, 2, device="meta")),
    st.sampled_from([None, 3, "text", [1.0, 2.0], {}, 1.5]),
)
FILES = st.one_of(
    st.dictionaries(
        st.sampled_from(["inputs", "targets", "teacher_weights", "student_weights", "other"]), TENSORS, max_size=5
    ),
    st.fixed_dictionaries({"inputs": TENSORS, "targets": TENSORS}),
    TENSORS,
)


@settings(max_examples=ledger.size(*FILES_OF_TENSORS))
@given(contents=FILES, name=st.sampled_from(["data.pt", "dätä 'x'.pt", "a\nb.pt"]))
def test_any_tensors_are_understood_or_refused_in_one_line(contents, name, programs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(contents, path)
        line = answer(programs["biased"][0], ["--data", str(path), "--student_width", "4"])
        assert not line or "--data" in line or "--student_width" in line
        assert os.listdir(folder) == [name]
    ledger.count("files of tensors that hypothesis made up")
    ledger.count("of these files, refused", bool(line))


class Attack:
    """Makes a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


ATTACKS = ("torch", "legacy", "pickle", "nested", "subclass")
READERS = ("--data", "result", "checkpoint")


@pytest.mark.parametrize("how", ATTACKS)
@pytest.mark.parametrize("option", READERS)
def test_no_file_executes_code(how, option, programs, tmp_path, monkeypatch):
    attack = {"inputs": Attack()} if how != "nested" else {"config": {"list": [[Attack()]]}, "state": (Attack(),)}
    path = tmp_path / "bad.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(attack))
    elif how == "subclass":
        torch.save({"inputs": torch.nn.Linear(2, 2)}, path)
    else:
        torch.save(attack, path, _use_new_zipfile_serialization=how != "legacy")
    if option == "--data":
        line = answer(programs["biased"][0], ["--data", str(path)])
        assert "not a file of tensors that torch.load can read safely" in line
    else:
        script = load_script(SCRIPTS["circle"])
        folder = tmp_path / "results"
        arguments = [*CIRCLE, "--distances", "--epochs", "9", "--output", str(folder)]
        script.main(arguments)
        (result,) = folder.iterdir()
        monkeypatch.chdir(tmp_path)
        content = path.read_bytes()
        if option == "result":
            result.write_bytes(content)
            with pytest.raises(SystemExit) as stop:
                script.main(arguments)
            assert stop.value.code == 2
            assert result.read_bytes() == content
        else:
            result.with_suffix(".checkpoint").write_bytes(content)
            script.main([*arguments, "--force"])
    assert not (tmp_path / "pwned").exists()
    ledger.count("files that would execute code")


# --- make and the workflow -----------------------------------------------------------------------------------------

MAKE = [
    *({"EPOCHS": value} for value in ("0", "-3", "1e3", "abc", '"; touch pwned; "', "`touch pwned`", "1 2", "٣")),
    *({"CORES": value} for value in ("0", "some", "2; touch pwned", '" ; touch pwned "', "-1")),
    *({"SEEDS": value} for value in ("x", "5-1", '0"; touch pwned; "', "-1", "0,0", "0-99999999999")),
    *({"SECTION": value} for value in ("7", '6.1"; touch pwned; "', "../x", "$$(touch pwned)", "é")),
]


@pytest.mark.parametrize("values", MAKE if ledger.LONG else [MAKE[4], MAKE[7]], ids=str)
def test_make_refuses(values, tmp_path):
    ready = tmp_path / "ready"
    ready.touch()
    given = [
        f"{name}={value}" for name, value in {"BIN": Path(sys.executable).parent, "READY": ready, **values}.items()
    ]
    environment = without_make() | {"VARPRO_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(
        ["make", "--no-print-directory", "plan", *given],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    assert not (ROOT / "pwned").exists()
    assert not (tmp_path / "results").exists()
    ledger.count("values of make and of the workflow")


CONFIG = [
    *("section=nonsense", "sectoin=6.1", "section=", "section=7", "seeds=x", "seeds=5-1", "seeds=-1", "seeds=[0,1]"),
    *("epochs=0", "epochs=abc", "epochs=1.5", "epochs=1e3"),
]
PROFILE = "Using workflow specific profile profiles/default for setting default command line arguments."


@pytest.mark.parametrize("value", CONFIG if ledger.LONG else CONFIG[:1])
def test_the_workflow_refuses(value, tmp_path):
    environment = without_make() | {"VARPRO_RESULTS": str(tmp_path / "results"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", value]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line != PROFILE)  # Snakemake's own
    assert line.startswith("Snakefile: error: ")
    assert "allowed" in line
    assert not (tmp_path / "results").exists()
    ledger.count("values of make and of the workflow")


PROMISED = {
    "command lines that hypothesis made up": len(NAMES) * EXAMPLES[1],
    "files of tensors that hypothesis made up": FILES_OF_TENSORS[1],
    "files that would execute code": len(ATTACKS) * len(READERS),
    "values of make and of the workflow": len(MAKE) + len(CONFIG),
}
