from importlib.util import find_spec

# `make test` runs these in the environment that holds k2, which has an older torch and neither hypothesis nor numba.
collect_ignore = ["test_k2.py"]
if find_spec("k2"):
    collect_ignore = ["test_backoff.py", "test_host.py", "test_numba_loop.py", "test_triton_loop.py"]
