"""Package of the toolkit. `make` builds the full, pinned environment of requirements.txt; this names its bases."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path(__file__).with_name("distill").joinpath("__init__.py").read_text())

setup(
    name="distillw2v2",
    version=VERSION.group(1) if VERSION else "0",
    description="Distil a large wav2vec 2.0 recogniser into a small streaming one, inside ESPnet",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["distill", "distill.*"]),
    package_data={
        "distill.report": ["*.html", "*.css"],
        "distill.serve": ["page/*"],
        "distill.export": ["web/*"],
        "distill.espnet3": ["conf/*.yaml"],
    },
    entry_points={"console_scripts": ["distill = distill.bin.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "numpy",
        "pydantic",  # checks of configurations, and of what models say of themselves
        "pyyaml",
        "safetensors",  # weights of packed models
        "soundfile",  # reading and writing audio
        "torch",
        "tqdm",  # progress bars
    ],
    extras_require={
        "train": [
            "espnet[train,asr]==202611",
            "editdistance",  # word errors while weights are tuned
            "numba",  # compiles LF-MMI's loop over frames; torch's operations do without, slower
            "omniio",  # Kaldi archives: stored teacher targets
            "sentencepiece",
            "resampy",  # with which ESPnet resamples a corpus (--resample true)
            "soxr",  # resampling of the corpora made here
            "transformers",  # wav2vec 2.0
        ],
        "transformers": ["transformers"],  # models in its form: pack --format transformers
        "report": ["jinja2", "matplotlib"],  # the page of an experiment; ticks of its plots
        "serve": ["aiohttp", "prometheus_client"],  # websocket server, page and client; the server's figures
        "kaldiio": ["kaldiio"],  # reads and writes Kaldi archives in omniio's place where it is installed
        "demo": ["espeakng-loader==0.2.4"],
        "deploy": ["onnx", "onnxruntime", "sherpa_onnx"],  # export, the recogniser without torch, the phone's runtime
        "decode": ["kaldi_decoder", "kaldifst", "numba"],  # WFST and n-gram language models
        "test": [
            *("hypothesis", "import-linter", "kaldilm", "mypy", "psutil", "pytest", "pytest-xdist", "ruff"),
            "types-PyYAML",
        ],
    },
)
