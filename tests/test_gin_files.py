"""Every shipped gin file parses, stands in a ranked folder, and includes only files that exist."""

from prompt_tuning import config, gin_files


def test_every_file_parses():
  for path in gin_files.shipped_paths():
    source = config.read(path)
    assert source.rank < gin_files.USER_RANK, f"{source.label} is in no folder that has a rank"
    assert source.settings or source.includes, f"{source.label} sets nothing"
    for name, _ in source.includes:
      assert name in gin_files.shipped_names(), f"{source.label} includes {name}"


def test_the_folder_is_the_installed_package():
  from prompt_tuning import gin_configs
  assert gin_files.shipped_folder().joinpath("__init__.py").samefile(gin_configs.__file__)
