"""Write the table of docs/licences.md: the licence of every package that setup.py names.

    PYTHONPATH=. python utils/licences.py

The licences are those of the packages' own metadata, so the script runs in the project's environment.
test/docs/test_licences.py fails when the page no longer holds what this script would write.
"""

from __future__ import annotations

import re
import runpy
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
}
# What a wheel contains besides the package itself.
CONTENTS = {
    "soundfile": "its wheel contains libsndfile, LGPL-2.1-or-later",
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
    if "\n" in field:  # the whole text of the licence
        field = ""
    stated = about.get("License-Expression") or field or " or ".join(classifiers)
    if not stated:
        raise ValueError(f"{package}: states no licence; read its wheel and add it to BY_HAND in utils/licences.py")
    short = SHORT.get(stated, stated)
    return f"{short}; {CONTENTS[package]}" if package in CONTENTS else short


def nvidia_packages() -> dict[str, str]:
    """Licence of every package of NVIDIA's in requirements.txt, by name."""
    names = re.findall(r"(?m)^((?:nvidia|cuda)-[\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    stated = {}
    for name in names:
        try:
            stated[name] = licence(name)
        except ValueError:
            stated[name] = "none stated (only requires the others)"
    return stated


def table() -> str:
    """The two tables of the page, in Markdown."""
    lines = ["| package | licence | needed by |", "|---|---|---|"]
    for name, extras in sorted(dependencies().items(), key=lambda item: item[0].lower()):
        lines.append(f"| {name} | {licence(name)} | {', '.join(extras)} |")
    lines += ["", "NVIDIA's packages, which torch's Linux wheel for x86-64 requires:", ""]
    lines += ["| licence | packages |", "|---|---|"]
    by_licence: dict[str, list[str]] = {}
    for name, stated in nvidia_packages().items():
        by_licence.setdefault(stated, []).append(name)
    lines += [f"| {stated} | {', '.join(names)} |" for stated, names in sorted(by_licence.items())]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page whose table between the two markers is replaced by a new one."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
