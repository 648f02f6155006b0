#!/usr/bin/env bash
# Writes tools/sbom.cdx.json, a software bill of materials (CycloneDX) of the environment, with cyclonedx-bom in a
# temporary environment, and prints the licences of all packages. Fails if docs/licences.md does not name one that is
# copyleft or proprietary.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "${folder}"' EXIT
python=$(utils/make_env.sh)
mkdir -p tools
"${python}" -m venv "${folder}/env"
if "${folder}/env/bin/pip" install -q cyclonedx-bom==7.5.0 2> "${folder}/log"; then
    "${folder}/env/bin/cyclonedx-py" environment --output-reproducible -o "${folder}/sbom" "${python}"
    mv "${folder}/sbom" tools/sbom.cdx.json
    echo "tools/sbom.cdx.json: $(grep -c '"bom-ref"' tools/sbom.cdx.json) components"
else
    echo "note: cyclonedx-bom cannot be installed here, so no bill of materials was written" >&2
fi
PYTHONPATH=. "${python}" utils/licences.py --report
