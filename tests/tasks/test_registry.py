"""Rows to seqio tasks, names to rows, and what each refuses."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.errors import UserError
from prompt_tuning.tasks import registry, table, vocabularies
from prompt_tuning.tasks.objectives import Deshuffle, PrefixLM
from prompt_tuning.tasks.spec import MixtureSpec, TaskSpec


@dataclasses.dataclass(frozen=True)
class Rows:
  texts: tuple[tuple[str, str], ...] = (("compute the mean of it", "yes"), ("x", "no"))
  splits: tuple[str, ...] = ("train", "test")

  def rows(self, split):
    return ({"split": split, "question": q, "answer": a} for q, a in self.texts)

  def fingerprint(self):
    return str(hash(self))


def to_text(row):
  return {"inputs": f"{row['split']}: {row['question']}", "targets": row["answer"]}


def row(name, **settings):
  return TaskSpec(**{"name": name, "source": Rows(), "to_text": to_text, "labels": ("yes", "no"),
                     "metrics": ("accuracy", "macro_f1")} | settings)


def read(task, split="train", **settings):
  return list(task.get_dataset(sequence_length=None, split=split, shuffle=False,
                               **settings).as_numpy_iterator())


@pytest.fixture
def own_table(monkeypatch):
  monkeypatch.setattr(table, "_rows", dict(table._rows))


def test_a_text_to_text_task():
  task = registry.build(row("registry_plain"))
  tokenizer = vocabularies.load_light("tiny")
  first, second = read(task, "test")
  assert set(first) == {"inputs", "targets", "inputs_pretokenized", "targets_pretokenized",
                        "extras"}
  assert first["inputs_pretokenized"] == b"test: compute the mean of it"
  assert first["inputs"].tolist() == [*tokenizer.encode("test: compute the mean of it"), 1]
  assert second["targets"].tolist() == [*tokenizer.encode("no"), 1]
  assert tuple(task.splits) == ("train", "test")
  accuracy, macro_f1 = task.metric_fns
  assert accuracy(["yes"], ["perhaps"]) == {"accuracy": 0.0, "not_a_label": 1.0}
  assert registry.build(row("registry_plain")) is task
  assert registry.row_of("registry_plain") == row("registry_plain")


def test_other_vocabularies_and_leading_sentinels_get_other_names():
  plain = registry.build(row("registry_names"))
  in_bytes = registry.build(row("registry_names"), vocabulary="bytes")
  ahead = registry.build(row("registry_names"), leading_sentinel=True)
  assert [task.name for task in (plain, in_bytes, ahead)] == [
    "registry_names", "registry_names__bytes", "registry_names__sentinel"]
  assert read(in_bytes)[1]["targets"].tolist() == [ord("n") + 3, ord("o") + 3, 1]
  assert read(ahead)[1]["targets"].tolist() == [4099, *read(plain)[1]["targets"].tolist()]


def test_a_denoising_task():
  text = "the mean of the values along the given axis " * 12
  task = registry.build(row(
    "registry_denoising", source=Rows(texts=((text, ""),)), labels=None, metrics=(),
    to_text=lambda raw: {"targets": raw["question"]}, objective=PrefixLM(length=32)))
  ids = vocabularies.load_light("tiny").encode(text)
  examples = read(task, seed=3)
  assert all(set(example) == {"inputs", "targets"} for example in examples)
  assert all(example[key][-1] == 1 for example in examples for key in example)
  assert [token for example in examples for key in ("inputs", "targets")
          for token in example[key][:-1].tolist()] == ids
  again = read(task, seed=3)
  assert [e["inputs"].tolist() for e in again] == [e["inputs"].tolist() for e in examples]


def test_a_mixture(own_table):
  text = "the mean of the values along the given axis"
  inner = row("registry_part", source=Rows(texts=((text, ""),)), labels=None, metrics=(),
              to_text=lambda raw: {"targets": raw["question"]}, objective=Deshuffle(length=64))
  tasks.add(row("registry_shared"))
  mixture = registry.resolve(MixtureSpec(
    name="registry_mixture", rates={"registry_part": 0.25, "registry_shared": 0.75},
    tasks=(inner,)))
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {"registry_part": 0.25, "registry_shared": 0.75}
  counts = [len(example["targets"]) > 3 for example in mixture.get_dataset(
    {"inputs": 65, "targets": 65}, split="train", shuffle=False, seed=1, num_epochs=None,
    ).take(400).as_numpy_iterator()]
  assert 0.17 < sum(counts) / 400 < 0.33
  assert registry.mixture("registry_mixture", rates, own_tasks={"registry_part": inner}) is mixture


def test_user_module(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "my_registry_tasks.py").write_text(textwrap.dedent("""
    import seqio
    seqio.TaskRegistry.add(
      "my_seqio_task", seqio.FunctionDataSource(lambda split, shuffle_files: None, ("train",)),
      output_features={})
    seqio.MixtureRegistry.add("my_seqio_mixture", ["my_seqio_task"], default_rate=1.0)
    """))
  task = registry.resolve("my_seqio_task", module="my_registry_tasks")
  assert task is seqio.TaskRegistry.get("my_seqio_task") and registry.row_of(task.name) is None
  assert registry.resolve("my_seqio_mixture") is seqio.MixtureRegistry.get("my_seqio_mixture")
  with pytest.raises(UserError, match="'my_seqio_task' brings its own preprocessors"):
    registry.resolve("my_seqio_task", leading_sentinel=True)
  with pytest.raises(UserError, match="did you mean 'my_seqio_task'"):
    registry.resolve("my_seqio_tusk")
  with pytest.raises(UserError, match="two different tasks are called 'my_seqio_task'"):
    registry.build(row("my_seqio_task"))


def test_names_that_do_not_resolve(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="no task or mixture 'docstring_libary'\n(.*\n)*"
                                      ".*did you mean 'docstring_library'"):
    registry.resolve("docstring_libary")
  with pytest.raises(UserError, match="'no_such_module.x' cannot be imported\n.*no_such_module"):
    registry.resolve("docstring_library", module="no_such_module.x")
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "imports_badly.py").write_text("import not_installed_anywhere")
  with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
    registry.resolve("docstring_library", module="imports_badly")


def test_one_spec_a_name(own_table):
  registry.build(row("registry_twice"))
  with pytest.raises(UserError, match="two different tasks are called 'registry_twice'"):
    registry.build(row("registry_twice", labels=("yes", "no", "maybe")))
  tasks.add(row("registry_added"))
  tasks.add(row("registry_added"))
  assert tasks.names().count("registry_added") == 1
  with pytest.raises(UserError, match="two different tasks are called 'registry_added'"):
    tasks.add(row("registry_added", metrics=()))


def test_table(own_table):
  tasks.add(row("registry_listed", description="mine"))
  tasks.add(MixtureSpec(name="registry_mixed", rates={"registry_listed": 1.0}))
  listed = {line["name"]: line for line in tasks.describe()}
  assert listed["registry_listed"] == {
    "name": "registry_listed", "kind": "classification", "splits": ("train", "test"),
    "labels": ("yes", "no"), "metrics": ("accuracy", "macro_f1"), "description": "mine",
    "sizes": {}, "source": ""}
  assert listed["registry_mixed"]["kind"] == "mixture"
  assert listed["docstring_span_corruption"]["kind"] == "denoising"
  assert listed["docstring_summary"]["kind"] == "text to text"
  assert tasks.examples("registry_listed", "test", 1) == [
    {"inputs": "test: compute the mean of it", "targets": "yes"}]
  assert tasks.num_rows("registry_listed") == {"train": 2, "test": 2}
  with pytest.raises(UserError, match="no split 'tset'\n(.*\n)*.*did you mean 'test'"):
    tasks.examples("registry_listed", "tset")
  with pytest.raises(UserError, match="'registry_mixed' is a mixture"):
    tasks.examples("registry_mixed")
  with pytest.raises(UserError, match="no task 'registry_listd'\n(.*\n)*.*'registry_listed'"):
    tasks.spec("registry_listd")


@pytest.mark.parametrize("make, message", [
  (lambda: row("two words"), "a task needs a plain name"),
  (lambda: row("x", labels=("a",)), "do not name classes"),
  (lambda: MixtureSpec(name="m", rates={"a": 1, "b": -1}), "rate that is not positive"),
  (lambda: MixtureSpec(name="m", rates={}), "no task")])
def test_bad_specs(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_listing_imports_neither_seqio_nor_tensorflow():
  code = ("import sys\nfrom prompt_tuning import tasks\ntasks.describe()\n"
          "from prompt_tuning.tasks import vocabularies, files, pretraining, metrics\n"
          "vocabularies.load_light('tiny').encode('x')\n"
          "print(sorted({'tensorflow', 'seqio', 'jax', 'nltk', 'sacrebleu'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout.strip() == "[]", done.stderr
