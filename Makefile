# make demo    environment, then a synthesised corpus from data to a table of results
# make test    environment, then linters and tests
# make env     the environment and ESPnet's scripts alone
# make python  prints the interpreter of the environment (make -s python), and builds it first if need be
# make clean   removes what the recipes of this clone made; the environment stays
SHELL := /bin/bash
.PHONY: demo test lint env python clean bench

demo: env
	@cd egs2/demo/asr_distill1 && ./run.sh

test: lint
	@PATH="$$PATH:/usr/lib/sctk/bin" PYTHONPATH=. "$$(utils/make_env.sh)" -m pytest -q --durations 10 test

lint: env
	@set -e; python="$$(utils/make_env.sh)"; \
	"$$python" -m ruff check distill test setup.py; "$$python" -m ruff format --check distill test setup.py; \
	"$$python" -m mypy distill; \
	if command -v shellcheck > /dev/null; then \
	    git ls-files '*.sh' .ci/run | xargs -r shellcheck -x --source-path=SCRIPTDIR -e SC1091; \
	else echo "note: shellcheck is not installed; shell scripts are not checked"; fi

env:
	@utils/make_env.sh > /dev/null
	@utils/get_espnet.sh > /dev/null
	@utils/missing_tools.sh

python:
	@utils/make_env.sh

bench:
	@echo "error: make bench: not built yet" >&2; exit 1

clean:
	rm -rf tools/espnet egs2/*/asr_distill1/{data,dump,exp,downloads,utils,steps,scripts,pyscripts}
