#!/usr/bin/env bash
# Makes a new recipe directory: egs2/TEMPLATE/asr_distill1/setup.sh egs2/mycorpus/asr_distill1
set -euo pipefail

usage="Usage: $0 <target-dir>
Makes a recipe directory <target-dir>, such as egs2/mycorpus/asr_distill1, with run.sh, cmd.sh, conf/ and local/data.sh
to edit, and links to the stages they share."
case "${1:-}" in
    -h | --help) echo "${usage}"; exit 0 ;;
esac
if [ $# -ne 1 ]; then
    echo "${usage}" >&2
    exit 2
fi
template=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
dir=$1
if [ -e "${dir}/run.sh" ]; then
    echo "error: ${dir}/run.sh: exists already; choose another directory or remove it" >&2
    exit 2
fi
mkdir -p "${dir}/conf" "${dir}/local"
dir=$(cd "${dir}" && pwd)
up=$(realpath --relative-to="${dir}" "${template}")
ln -sfn "${up}/distill.sh" "${dir}/distill.sh"
ln -sfn "${up}/path.sh" "${dir}/path.sh"
cp "${template}/cmd.sh" "${dir}/cmd.sh"
cp -r "${template}/../../../conf/"*.{yaml,conf} "${template}/../../../conf/students" "${dir}/conf/"
cp "${template}/run.sh" "${dir}/run.sh"
cp "${template}/local/data.sh" "${dir}/local/data.sh"
echo "Made ${dir}. Next: let local/data.sh make data/train, data/valid and data/test, then ./run.sh"
