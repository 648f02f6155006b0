"""Write the table of docs/licences.md, or report the licences of all packages of the environment.

    PYTHONPATH=. python utils/licences.py             writes the table: every package that setup.py names
    PYTHONPATH=. python utils/licences.py --report    prints all of requirements.txt by licence; status 1 if the page
                                                      does not name one that is copyleft or proprietary

The licences are those of the packages' own metadata, so the script runs in the project's environment.
test/docs/test_licences.py fails when the page no longer holds what this script would write.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licences.md"
BEGIN, END = "<!-- table: utils/licences.py -->\n", "<!-- end of table -->\n"

# What the metadata of a package leaves out, read in its wheel or in its source tree.
BY_HAND = {
    "kaldiio": "**evaluation licence of NTT**, not open source",
    "sentencepiece": "Apache-2.0 (as its repository states; the wheel names none)",
    "espeakng-loader": "none stated; **contains espeak-ng, GPL-3.0-or-later**",
    "ctc-segmentation": "Apache-2.0 (its LICENSE file)",
    "cuda-toolkit": "none stated (only requires NVIDIA's packages)",
}
# What a wheel contains besides the package itself.
CONTENTS = {
    "soundfile": "its wheel contains libsndfile, LGPL-2.1-or-later",
    "av": "its wheel contains FFmpeg with x264 and x265, GPL-2.0-or-later",
    "torch": "its Linux wheel requires NVIDIA's packages, see below",
}
SHORT = {
    "Apache Software License": "Apache-2.0",
    "Apache licensed, as found in the LICENSE file": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "MIT License": "MIT",
    "NVIDIA Proprietary Software": "proprietary (NVIDIA)",
    "LicenseRef-NVIDIA-Proprietary": "proprietary (NVIDIA)",
    "Python Software Foundation License": "Matplotlib licence (PSF style)",
}
RESTRICTED = re.compile(r"GPL|proprietary|not open source")  # copyleft or proprietary


def dependencies() -> dict[str, list[str]]:
    """Every package that setup.py names, with the extras that ask for it; ``base`` is install_requires."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    arguments = setup.call_args.kwargs
    needed_for: dict[str, list[str]] = {}
    for extra, requirements in {"base": arguments["install_requires"], **arguments["extras_require"]}.items():
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)
            if name is None:
                raise ValueError(f"setup.py: {requirement!r} does not begin with the name of a package")
            needed_for.setdefault(name[0], []).append(extra)
    return needed_for


def licence(package: str) -> str:
    """The licence of an installed package: its SPDX expression, else its licence field, else its classifier.

    Raises:
        ValueError: the package states none, and :data:`BY_HAND` has none either.
    """
    if package in BY_HAND:
        return BY_HAND[package]
    about = metadata.metadata(package)
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License")]
    field = about.get("License") or ""
    if "\n" in field or field == "UNKNOWN":  # the whole text of the licence, or none
        field = ""
    stated = about.get("License-Expression") or field or " or ".join(classifiers)
    if not stated:
        raise ValueError(f"{package}: states no licence; read its wheel and add it to BY_HAND in utils/licences.py")
    short = SHORT.get(stated, stated)
    return f"{short}; {CONTENTS[package]}" if package in CONTENTS else short


def pinned() -> list[str]:
    """Names of all packages in requirements.txt."""
    return re.findall(r"(?m)^([\w.-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"))


def by_licence(packages: Iterable[str]) -> dict[str, list[str]]:
    """Packages by their licence."""
    found: dict[str, list[str]] = {}
    for name in packages:
        found.setdefault(licence(name), []).append(name)
    return dict(sorted(found.items()))


def unnamed(page: str) -> list[str]:
    """Packages of requirements.txt that are copyleft or proprietary and that a page does not name."""
    words = set(re.findall(r"[\w.-]+", page.lower()))
    return [name for name in pinned() if RESTRICTED.search(licence(name)) and name.lower() not in words]


def table() -> str:
    """The two tables of the page, in Markdown."""
    lines = ["| package | licence | needed by |", "|---|---|---|"]
    for name, extras in sorted(dependencies().items(), key=lambda item: item[0].lower()):
        lines.append(f"| {name} | {licence(name)} | {', '.join(extras)} |")
    lines += ["", "NVIDIA's packages, which torch's Linux wheel for x86-64 requires:", ""]
    lines += ["| licence | packages |", "|---|---|"]
    nvidia = [name for name in pinned() if name.startswith(("nvidia-", "cuda-"))]
    lines += [f"| {stated} | {', '.join(names)} |" for stated, names in by_licence(nvidia).items()]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page whose table between the two markers is replaced by a new one."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="print all packages by licence instead")
    if parser.parse_args().report:
        for stated, names in by_licence(pinned()).items():
            print(f"{stated}: {', '.join(names)}")
        if missing := unnamed(PAGE.read_text(encoding="utf-8")):
            sys.exit(f"error: {PAGE}: does not name {', '.join(missing)}; read their licences and name them there")
    else:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
