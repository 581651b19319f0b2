"""core/optional.py."""

import sys
from importlib import invalidate_caches

import pytest

from scratchgen.core.optional import MissingPackage, is_there, optional


def test_a_module_that_is_there_is_given():
    assert optional("json.decoder", "files").JSONDecoder


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingPackage, match="^files need .* scipy; .* pip install scipy$"):
        optional("scipy.io", "files")
    assert issubclass(MissingPackage, ImportError)


def test_a_folder_is_no_package_until_it_has_a_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_there("left_behind")
    (tmp_path / "left_behind" / "__pycache__").mkdir(parents=True)
    invalidate_caches()
    assert not is_there("left_behind")
    (tmp_path / "left_behind" / "__init__.py").touch()
    invalidate_caches()
    assert is_there("left_behind")
    monkeypatch.setitem(sys.modules, "scratchgen.fast", None)
    assert not is_there("scratchgen.fast")
