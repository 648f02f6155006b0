# make demo    environment, then a synthesised corpus from data to a table of results
# make test    environment, then linters and tests
# make audit   known vulnerabilities of the pinned packages
# make sbom    a bill of materials of the environment (CycloneDX), and its licences
# make env     the environment and ESPnet's scripts alone
# make python  prints the interpreter of the environment (make -s python), and builds it first if need be
# make env-k2, make python-k2    the same for the environment that holds k2, the judge of the LF-MMI
# make bench   size and speed of students beside wav2vec 2.0, of exported ones beside torch, of the LF-MMI beside k2's and
#              torch's (TEXT=FILE: real sentences, for its n-grams), of training steps with and without a teacher; writes docs/performance.md. Then the delay of a
#              server with 20 clients
# make test-gpu    tests on a CUDA device: losses, networks, streams, training
# make bench-gpu   speed on a CUDA device; writes docs/performance-gpu.md
# make bench-scale    what handling a large corpus costs, on synthetic tables; writes docs/scale.md. 20 minutes, 40 GB of
#              disk; what is measured stays in exp_scale, and a second call goes on from there
# make bench-peers    F beside SpeechBrain's streaming Conformer, which is installed in a temporary folder
# make check-s3prl    computes anew with s3prl, in a temporary folder, what teachers over it are compared with
# make clean   removes what the recipes of this clone made; the environment stays
SHELL := /bin/bash
.PHONY: demo test test-gpu lint audit sbom env python env-k2 python-k2 clean bench bench-gpu bench-scale bench-peers check-s3prl

demo: env
	@cd egs2/demo/asr_distill1 && ./run.sh

test: lint
	@PATH="$$PATH:/usr/lib/sctk/bin" PYTHONPATH=. OMP_NUM_THREADS=1 DISTILL_TEST_DEVICE=cpu \
	    "$$(utils/make_env.sh)" -m pytest -q -rs --durations 10 -m 'not endurance' -n auto \
	    --maxprocesses 4 --dist loadfile --no-loadscope-reorder test
	@if python="$$(utils/make_env.sh k2)"; then PYTHONPATH=. "$$python" -m pytest -q -rs test/lfmmi; \
	else echo "note: k2 cannot be installed here, so the LF-MMI was not compared with it"; fi

test-gpu: env
	@PYTHONPATH=. "$$(utils/make_env.sh)" -m pytest -q --durations 5 -m gpu test/gpu

lint: env
	@set -e; python="$$(utils/make_env.sh)"; \
	"$$python" -m ruff check distill test utils setup.py; "$$python" -m ruff format --check distill test utils setup.py; \
	"$$python" -m mypy distill; "$$(dirname "$$python")/lint-imports" --no-logo; \
	if command -v shellcheck > /dev/null; then \
	    git ls-files '*.sh' .ci/run | xargs -r shellcheck -x --source-path=SCRIPTDIR -e SC1091; \
	else echo "note: shellcheck is not installed; shell scripts are not checked"; fi

audit:
	@utils/audit.sh

sbom:
	@utils/sbom.sh

env:
	@utils/make_env.sh > /dev/null
	@utils/get_espnet.sh > /dev/null
	@utils/missing_tools.sh

python:
	@utils/make_env.sh

env-k2:
	@utils/make_env.sh k2 > /dev/null

python-k2:
	@utils/make_env.sh k2

bench: env
	@k2=$$(utils/make_env.sh k2) || echo "note: k2 cannot be installed here, so it is left out" >&2; \
	python=$$(utils/make_env.sh); results=$$(mktemp -d); trap 'rm -rf "$$results"' EXIT; \
	bench() { echo "--- $$1" >&2; PYTHONPATH=. "$$python" -m "distill.bench.$$1" "$${@:2}" --output "$$results/$$1.json"; }; \
	{ if [ -n "$(TEXT)" ]; then bench lfmmi --text "$(TEXT)" $${k2:+--k2_python "$$k2"}; \
	  else echo "note: no TEXT=file of sentences, so the LF-MMI is not timed" >&2; fi; } && \
	bench teacher_and_students && GLIBC_TUNABLES=glibc.malloc.hugetlb=1 bench large && bench streaming && bench streams && bench int4 && bench export && bench targets && bench scaling && bench bfloat16 && \
	PYTHONPATH=. "$$python" -m distill.bench.page --results "$$results" --output docs/performance.md && \
	PYTHONPATH=. "$$python" -m distill.bench.serve

bench-gpu: env
	@PYTHONPATH=. "$$(utils/make_env.sh)" -m distill.bench.gpu --output docs/performance-gpu.md

bench-peers: env
	@python=$$(utils/make_env.sh); folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$$python" -m pip install --quiet --no-deps --require-hashes --target "$$folder" --requirement requirements-peers.txt && \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHONPATH=".:$$folder" "$$python" -m distill.bench.peers

check-s3prl: env
	@python=$$(utils/make_env.sh); folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$$python" -m pip install --quiet --no-deps --require-hashes --target "$$folder" --requirement requirements-s3prl.txt && \
	PYTHONPATH=".:test/helpers:$$folder" "$$python" test/models/make_s3prl_golden.py --check

bench-scale: env
	@PYTHONPATH=. "$$(utils/make_env.sh)" -m distill.bench.scale --results exp_scale --output docs/scale.md

clean:
	rm -rf tools/espnet egs2/*/asr_distill1/{data,dump,exp,downloads,utils,steps,scripts,pyscripts}
