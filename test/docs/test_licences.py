"""docs/licences.md names every direct dependency, with the licence that the installed package states."""

import licences
import pytest


def test_the_page_is_what_the_script_writes():
    page = licences.PAGE.read_text(encoding="utf-8")
    assert page == licences.with_table(page), "run: PYTHONPATH=. python utils/licences.py"


def test_every_dependency_of_setup_py_is_in_the_table():
    names = licences.dependencies()
    assert {"torch", "numpy", "espnet", "soxr", "espeakng-loader"} <= names.keys()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in licences.table().splitlines()}
    assert names.keys() <= rows


def test_a_package_that_states_no_licence_is_refused(monkeypatch):
    monkeypatch.delitem(licences.BY_HAND, "espeakng-loader")
    with pytest.raises(ValueError, match="espeakng-loader: states no licence"):
        licences.licence("espeakng-loader")


def test_copyleft_and_proprietary_packages_are_named():
    table = licences.table()
    assert "| soxr | LGPL-2.1-or-later |" in table
    assert "espeak-ng, GPL-3.0-or-later" in table
    assert "| proprietary (NVIDIA) | nvidia-cublas" in table
    assert "libsndfile, LGPL-2.1-or-later" in table


def test_the_page_names_every_package_that_is_copyleft_or_proprietary():
    page = licences.PAGE.read_text(encoding="utf-8")
    assert len(licences.pinned()) > 150 and licences.unnamed(page) == []
    without = page.replace("soxr", "").replace("nvidia-nccl-cu13", "").replace("**av**", "")
    assert licences.unnamed(without) == ["av", "nvidia-nccl-cu13", "soxr"]


def test_the_toolkit_is_under_the_apache_licence():
    text = (licences.ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
