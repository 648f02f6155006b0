#!/usr/bin/env bash
# Prints a line for each optional tool that is missing and that pip cannot install. Everything runs without them.
set -euo pipefail

if ! command -v sclite > /dev/null && [ ! -x /usr/lib/sctk/bin/sclite ]; then
    echo "note: sclite is not installed (Debian: apt install sctk); it would show alignments; the counts are the same without it" >&2
fi
if ! command -v espeak-ng > /dev/null; then
    echo "note: espeak-ng is not installed (Debian: apt install espeak-ng); it would let you listen to the demo's voices," \
        "which come from pip's espeakng-loader" >&2
fi
