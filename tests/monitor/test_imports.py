import subprocess
import sys
from pathlib import Path

import vtriune.monitor
from vtriune.monitor.trackers.base import PACKAGES


def test_the_monitor_imports_no_model_library(tmp_path: Path) -> None:
    room = Path(vtriune.monitor.__path__[0])
    modules = [".".join(path.relative_to(room).with_suffix("").parts) for path in sorted(room.rglob("*.py"))]
    modules = [module for module in modules if module not in {"plots", *(f"trackers.{name}" for name in PACKAGES)}]
    assert "trackers.tensorboard" in modules
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module("vtriune.monitor." + name)
sys.exit(" ".join({{"torch", "tensorflow", "transformers", "datasets", "matplotlib"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
