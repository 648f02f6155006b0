# shellcheck shell=bash
# Sourced: sets env_home, the directory of the environments.
# shellcheck disable=SC2034
if [ -n "${DISTILL_ENV_HOME:-${XDG_CACHE_HOME:-${HOME:-}}}" ]; then
    env_home=${DISTILL_ENV_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/distillw2v2}
else
    echo "error: HOME is not set; set it, or DISTILL_ENV_HOME to a directory for the environment (7 GB)" >&2
    exit 2
fi
