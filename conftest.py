"""Which modules pytest does not import for their doctests: those whose engine or tracker isn't installed here."""

from importlib.util import find_spec

collect_ignore_glob = ["tests/integrations/verl/support/*"]  # registers things with verl, inside its processes only
if find_spec("verl") is None:
    with_verl = ("agent", "dataset", "engine", "main", "reasons", "reward", "trainer", "updates")
    collect_ignore_glob += [f"src/vtriune/integrations/verl/{name}.py" for name in with_verl]
if find_spec("swift") is None:
    collect_ignore_glob.append("src/vtriune/integrations/ms_swift.py")
collect_ignore_glob += [
    f"src/vtriune/monitor/trackers/{name}.py" for name in ("mlflow", "trackio", "wandb") if find_spec(name) is None
]
