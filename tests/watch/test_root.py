from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.store import RunStore
from vtriune.types import UserError
from vtriune.watch.root import NotFound, Root


def make_run(folder: Path) -> Path:
    with RunStore.create(folder, recipe={}, total_steps=1, threads=1):
        pass
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Runs `demo` and `old/été`, and beside the root another run that must not be reached."""
    make_run(tmp_path / "elsewhere" / "secret")
    make_run(tmp_path / "runs" / "demo")
    make_run(tmp_path / "runs" / "old" / "été")
    return Root.open(tmp_path / "runs")


def test_runs_are_named_by_their_path_below_the_root(root: Root) -> None:
    assert [name for name, _ in root.runs()] == ["demo", "old/été"]
    for name, folder in root.runs():
        assert root.run(name) == folder


def test_a_root_that_is_a_run_itself_is_a_dot(root: Root) -> None:
    demo = Root.open(root.path / "demo")
    assert demo.runs() == [(".", root.path / "demo")]
    assert demo.run(".") == root.path / "demo"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../elsewhere/secret",
        "demo/../../elsewhere/secret",
        "demo/../demo",
        "./demo",
        "demo/",
        "demo//",
        "old//été",
        "/",
        "//demo",
        "old",
        "nothing",
        "demo/rollouts",
        "demo/checkpoints/run",
        ".",
        "demo\0",
        "\udc80",
        "%2e%2e/elsewhere/secret",
        "..\\elsewhere\\secret",
        "x" * 5000,
        "a/" * 3000 + "a",
    ],
)
def test_no_other_name_leads_anywhere(root: Root, name: str) -> None:
    make_run(root.path / "demo" / "checkpoints" / "run")  # inside a run nothing is a run
    with pytest.raises(NotFound, match="no run"):
        root.run(name)


def test_an_absolute_path_is_no_name_even_of_a_run_that_is_there(root: Root) -> None:
    for folder in (root.path / "demo", root.path.parent / "elsewhere" / "secret"):
        with pytest.raises(NotFound):
            root.run(str(folder))


def test_a_link_is_no_run_wherever_it_leads(root: Root) -> None:
    (root.path / "out").symlink_to(root.path.parent / "elsewhere" / "secret")
    (root.path / "above").symlink_to(root.path.parent)
    (root.path / "within").symlink_to(root.path / "demo")
    (root.path / "circle").symlink_to(root.path / "circle")
    assert [name for name, _ in root.runs()] == ["demo", "old/été"]
    for name in ("out", "above/elsewhere/secret", "within", "circle", "circle/demo"):
        with pytest.raises(NotFound):
            root.run(name)


@pytest.mark.parametrize("file", ["metrics.jsonl", "rollouts", "run.json", "history.bin", "alerts.jsonl"])
def test_a_file_of_a_run_that_leads_out_of_the_root_is_not_read(root: Root, file: str) -> None:
    secret = root.path.parent / "elsewhere" / "secret" / file
    path = root.path / "demo" / file
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(DamagedRun, match="leads out of"):
        root.run("demo")


def test_a_root_behind_a_link_is_served(root: Root) -> None:
    link = root.path.parent / "link"
    link.symlink_to(root.path)
    assert Root.open(link).run("demo") == root.path / "demo"


def test_a_root_that_is_no_folder_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder that holds your runs"):
        Root.open(tmp_path / "missing")


pieces = st.sampled_from(["..", ".", "", "demo", "old", "été", "/", "elsewhere", "secret", "\0", "rollouts", "x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.lists(pieces, max_size=8).map("/".join) | st.text(max_size=20))
def test_whatever_the_name_only_listed_runs_are_opened(root: Root, name: str) -> None:
    listed = dict(root.runs())
    try:
        folder = root.run(name)
    except NotFound:
        assert name not in listed
    else:
        assert listed[name] == folder
