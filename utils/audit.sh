#!/usr/bin/env bash
# Looks up known vulnerabilities of the packages in requirements.txt with pip-audit, in a temporary environment. Fails if
# there are any. requirements-k2.txt is left out: that environment is for tests only, and k2 requires its old torch.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "${folder}"' EXIT
"$(utils/make_env.sh)" -m venv "${folder}/env"
if ! "${folder}/env/bin/pip" install -q pip-audit==2.10.1 2> "${folder}/log"; then
    echo "note: pip-audit cannot be installed here, so no package was checked" >&2
    exit 0
fi
"${folder}/env/bin/pip-audit" --no-deps --disable-pip -r requirements.txt -f json -o "${folder}/report" \
    2> "${folder}/log" || true
if [ ! -s "${folder}/report" ]; then
    echo "note: advisories cannot be fetched here: $(tail -n 1 "${folder}/log")" >&2
    exit 0
fi
"${folder}/env/bin/python" - "${folder}/report" << 'END'
import json, sys

packages = json.load(open(sys.argv[1]))["dependencies"]
bad = [f"{package['name']} {package['version']}: {known['id']}" for package in packages for known in package.get("vulns", [])]
unknown = [package["name"] for package in packages if "skip_reason" in package]
print(f"requirements.txt: {len(packages) - len(unknown)} packages checked, {len(unknown)} unknown to PyPI's advisories")
if bad:
    sys.exit(f"error: requirements.txt: {'; '.join(bad)}; raise these versions")
END
