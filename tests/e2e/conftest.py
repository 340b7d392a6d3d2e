"""Runs of one session share what they compile, in a cache that goes with the session."""

import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("compiled"))
  settings = {"jax_persistent_cache_min_compile_time_secs": 0.0,
              "jax_persistent_cache_min_entry_size_bytes": -1}
  with pytest.MonkeyPatch.context() as patch:
    import jax
    old = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
      jax.config.update(name, value)
      patch.setenv(name.upper(), str(value))  # for the processes that tests start
    patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    compilation_cache.reset_cache()
    compilation_cache.set_cache_dir(folder)
    yield
    for name, value in old.items():
      jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
