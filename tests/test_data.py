"""From a seqio task to batches known by their step; toy tasks, no network."""

import functools
import itertools
import threading
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import data, sources
from prompt_tuning.batches import eval_batches, fold
from prompt_tuning.data import TrainData, cache_task
from prompt_tuning.errors import UserError
from prompt_tuning.placement import Placement
from prompt_tuning.prefetch import Prefetcher

VOCABULARY = seqio.ByteVocabulary()
LENGTHS = {"inputs": 12, "targets": 8}
FEATURES = {name: seqio.Feature(VOCABULARY) for name in ("inputs", "targets")}


def texts_of(rows, start=0):
  return [{"inputs": f"line {i}", "targets": f"no {i}"} for i in range(start, start + rows)]


@seqio.map_over_dataset(num_seeds=1)
def add_noise(row, seed):
  noise = tf.random.stateless_uniform([1], seed, 10, 250, tf.int32)
  return {**row, "inputs": tf.concat([row["inputs"], noise], 0)}


def task_of(rows, name="toy", extra=(), features=None, append_eos=True):
  rows = rows if isinstance(rows, list) else texts_of(rows)

  def dataset(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_generator(
        lambda: iter(rows),
        output_signature={key: tf.TensorSpec([], tf.string) for key in ("inputs", "targets")})

  return seqio.Task(
      name, seqio.FunctionDataSource(dataset, splits=("train", "validation")),
      output_features=features or FEATURES,
      preprocessors=[seqio.preprocessors.tokenize, *extra,
                     *([seqio.preprocessors.append_eos] if append_eos else [])])


@pytest.fixture
def make(tmp_path):
  defaults = {"lengths": LENGTHS, "batch_size": 4, "seed": 0, "cache_dir": tmp_path}
  return lambda task, **kwargs: TrainData(task, **{**defaults, **kwargs})


def decoded(batch):
  return [VOCABULARY.decode([int(t) for t in row if t > 0])
          for row in batch["encoder_input_tokens"]]


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_a_cached_row_is_what_seqio_gives(tmp_path):
  cache = cache_task(task_of(3), "train", cache_dir=tmp_path)
  assert len(cache) == 3
  row = cache[2]
  assert row["inputs"].tolist() == [*VOCABULARY.encode("line 2"), 1]
  assert row["targets"].tolist() == [*VOCABULARY.encode("no 2"), 1]
  assert (row["inputs_text"], row["targets_text"]) == ("line 2", "no 2")


def test_a_cache_is_made_once_for_each_thing_it_depends_on(tmp_path, monkeypatch):
  base = cache_task(task_of(3), "train", cache_dir=tmp_path).folder
  others = [
      cache_task(task_of(3), "validation", cache_dir=tmp_path),
      cache_task(task_of(3), "train", cache_dir=tmp_path, fingerprint="other text"),
      cache_task(task_of(3), "train", cache_dir=tmp_path, epoch_seed=5),
      cache_task(task_of(3, extra=[add_noise]), "train", cache_dir=tmp_path),
      cache_task(task_of(3, features={
          "inputs": seqio.Feature(seqio.ByteVocabulary(extra_ids=7)),
          "targets": FEATURES["targets"]}), "train", cache_dir=tmp_path),
  ]
  assert len({base, *(cache.folder for cache in others)}) == 6
  monkeypatch.setattr(data, "write_cache", None)
  assert cache_task(task_of(3), "train", cache_dir=tmp_path).folder == base


def test_the_arguments_and_the_code_of_a_preprocessor_are_in_the_key(tmp_path):
  def keep(dataset, length):
    return dataset.filter(lambda row: tf.size(row["inputs"]) < length)

  def drop(dataset, length):
    return dataset.filter(lambda row: tf.size(row["inputs"]) > length)

  def closed_over(length):
    return lambda dataset: keep(dataset, length)

  steps = [functools.partial(keep, length=100), functools.partial(keep, length=200),
           functools.partial(drop, length=0), closed_over(100), closed_over(200)]
  folders = [cache_task(task_of(2, extra=[step]), "train", cache_dir=tmp_path).folder
             for step in steps]
  assert len(set(folders)) == len(steps)


def test_an_epoch_visits_every_row_once_and_the_next_one_in_another_order(make):
  train = make(task_of(20))
  assert train.steps_per_epoch == 5
  epochs = [[text for step in range(5 * epoch, 5 * epoch + 5) for text in decoded(train.at(step))]
            for epoch in range(2)]
  wanted = sorted(row["inputs"] for row in texts_of(20))
  assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
  assert epochs[0] != epochs[1]


def test_rows_left_over_at_the_end_of_an_epoch_are_not_dropped(make):
  train = make(task_of(6))
  assert train.steps_per_epoch == 2
  rows = [text for step in range(3) for text in decoded(train.at(step))]
  wanted = sorted(row["inputs"] for row in texts_of(6))
  assert sorted(rows[:6]) == sorted(rows[6:]) == wanted


def test_a_batch_depends_on_seed_and_step_only(make):
  train = make(task_of(20))
  with Prefetcher(train.at, stop=12) as batches:
    met = list(batches)
  again = make(task_of(20))
  for step in (11, 0, 7):
    assert_equal(again.at(step), met[step])
  assert decoded(make(task_of(20), seed=1).at(0)) != decoded(met[0])


def test_hosts_make_disjoint_slices_of_the_same_batch(make):
  hosts = [make(task_of(20), host_index=host, host_count=2) for host in range(2)]
  whole = make(task_of(20))
  for step in range(6):
    parts = [host.at(step) for host in hosts]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert_equal(joined, whole.at(step))


def test_a_stochastic_task_changes_from_epoch_to_epoch_and_is_the_same_in_another_run(
    make, tmp_path):
  def noise(train, epoch):
    batches = [train.at(step)["encoder_input_tokens"] for step in range(5 * epoch, 5 * epoch + 5)]
    return sorted(map(tuple, np.concatenate(batches).tolist()))

  task = task_of(20, extra=[add_noise])
  train = make(task, stochastic=True)
  first, second = noise(train, 0), noise(train, 1)
  assert first != second
  elsewhere = make(task, stochastic=["toy"], cache_dir=tmp_path / "elsewhere")
  assert noise(elsewhere, 1) == second and noise(elsewhere, 0) == first
  fixed = make(task)
  assert noise(fixed, 0) == noise(fixed, 1)


def made_epochs(folder, wanted, seconds=30):
  """How many caches lie in a folder, once there are `wanted` or the time is over."""
  end = time.monotonic() + seconds
  while len(list(folder.glob("toy-*"))) < wanted and time.monotonic() < end:
    time.sleep(0.01)
  return len(list(folder.glob("toy-*")))


def test_the_next_epoch_is_made_ahead_from_its_middle_on_unless_the_run_ends_before(
    make, tmp_path):
  task = task_of(40, extra=[add_noise])  # epochs of 10 steps
  train = make(task, stochastic=True)
  for step in range(5):
    train.at(step)
  train.close()
  assert made_epochs(tmp_path, 2, seconds=0) == 1
  train = make(task, stochastic=True)
  train.at(5)
  assert made_epochs(tmp_path, 2) == 2
  train.close()
  short = make(task, stochastic=True, cache_dir=tmp_path / "short", last_step=9)
  for step in range(10):
    short.at(step)
  short.close()
  assert made_epochs(tmp_path / "short", 2, seconds=0) == 1


def test_what_is_made_ahead_is_broken_off_and_leaves_nothing(make, tmp_path, monkeypatch):
  began, go_on = threading.Event(), threading.Event()
  chunks, epochs = data._chunks, itertools.count()

  def slow(*arguments):
    is_first = next(epochs) == 0
    for chunk in chunks(*arguments):
      if not is_first:
        began.set()
        go_on.wait(30)
      yield chunk

  monkeypatch.setattr(data, "_chunks", slow)
  train = make(task_of(20, extra=[add_noise]), stochastic=True)
  train.at(4)
  assert began.wait(30)
  closing = threading.Thread(target=train.close)
  closing.start()
  while not train._closing.is_set():
    time.sleep(0.01)
  go_on.set()
  closing.join(30)
  assert not closing.is_alive()
  assert [path.name.startswith("toy-") for path in tmp_path.iterdir()] == [True]


def test_packed_epochs_of_noise_are_made_ahead_and_are_those_that_are_made_late(make, tmp_path):
  def rows(folder, ahead):
    train = make(task_of(40, extra=[add_noise]), stochastic=True, pack=True,
                 cache_dir=tmp_path / folder)
    last = train.steps_per_epoch - 1
    if ahead:
      train.at(last)
      assert made_epochs(tmp_path / folder, 2) == 2
    return [train.at(step)["encoder_input_tokens"].tolist() for step in range(last, last + 4)]

  assert rows("ahead", True) == rows("late", False)


def test_an_epoch_that_fails_ahead_raises_where_it_is_needed(make):
  counts = itertools.count()

  def fail_later(dataset):
    if next(counts):
      raise UserError("No second epoch", found="it", wanted="none", fix="nothing")
    return dataset

  train = make(task_of(20, extra=[fail_later]), stochastic=True)
  for step in range(5):
    train.at(step)
  with pytest.raises(UserError, match="No second epoch"):
    train.at(5)


def test_a_task_that_changes_its_size_between_epochs_is_an_error(make):
  sizes = itertools.count(8)

  def shrink(dataset):
    return dataset.take(next(sizes))

  train = make(task_of(20, extra=[shrink]), stochastic=True)
  with pytest.raises(UserError, match="(?s)changed its size.*9 rows in epoch 1.*8 rows"):
    train.at(2)


def mixture_of(name, rates):
  tasks = [(task_of(texts_of(40, start=100 * index), f"{name}_{index}"), rate)
           for index, rate in enumerate(rates)]
  for task, _ in tasks:
    seqio.TaskRegistry.add_provider(task.name, task)
  return seqio.Mixture(name, [(task.name, rate) for task, rate in tasks])


@pytest.fixture
def mixture(request):
  yield lambda rates: mixture_of(request.node.originalname, rates)
  for name in [n for n in seqio.TaskRegistry.names() if n.startswith(request.node.originalname)]:
    seqio.TaskRegistry.remove(name)


def test_a_mixture_keeps_its_rates_and_names_its_prompts(make, mixture):
  mixed = mixture([3.0, 1.0])
  names = [task.name for task in mixed.tasks]
  train = make(mixed, prompt_ids={names[0]: 5, names[1]: 2})
  assert train.report.rows == train.examples_per_epoch == 80 and len(train.reports) == 2
  batches = [train.at(step) for step in range(40)]
  texts = [text for batch in batches for text in decoded(batch)]
  ids = np.concatenate([batch["prompt_ids"] for batch in batches])
  second = np.array([int(text.split()[1]) >= 100 for text in texts])
  assert second.sum() == 40
  np.testing.assert_array_equal(ids, np.where(second, 2, 5))
  # 160 draws at 3:1 are 120 and 40: three epochs of the first task, one of the second.
  assert sorted(set(texts)) == sorted(
      row["inputs"] for row in texts_of(40) + texts_of(40, start=100))


@pytest.mark.parametrize("rates,kwargs,message", [
    ([1.0, 0.0], {}, "rate of .*_1' in the mixture is not positive"),
    ([1.0, 1.0], {"stochastic": ["toy_9"]}, "(?s)isn't in the mixture.*'toy_9'"),
    ([1.0, 1.0], {"prompt_ids": {}}, "Some tasks have no prompt"),
])
def test_mistakes_in_a_mixture(make, mixture, rates, kwargs, message):
  with pytest.raises(UserError, match=message):
    make(mixture(rates), **kwargs)


def test_packed_batches_hold_every_example_of_each_epoch_once(make):
  kwargs = {"pack": True, "placement": Placement.front(2), "lengths": {"inputs": 30, "targets": 20}}
  train = make(task_of(30), **kwargs)
  found = []
  for step in range(12):
    batch = train.at(step)
    for row, segments in zip(batch["encoder_input_tokens"], batch["encoder_segment_ids"],
                             strict=True):
      for number in range(1, segments.max() + 1):
        part = row[segments == number]
        assert part[:2].tolist() == [-1, -2]
        found.append(VOCABULARY.decode(part[2:].tolist()))
  assert train.steps_per_epoch < 8
  wanted = sorted(row["inputs"] for row in texts_of(30))
  assert sorted(found[:30]) == sorted(found[30:60]) == wanted
  # A fresh object that starts at a late step meets the same batch: nothing is carried over.
  assert_equal(make(task_of(30), **kwargs).at(11), train.at(11))
  assert_equal(make(task_of(30), **kwargs).at(1), train.at(1))


def test_eval_batches_keep_the_order_and_fill_up_the_last_batch(tmp_path):
  cache = cache_task(task_of(7), "validation", cache_dir=tmp_path)
  batches = list(eval_batches(cache, lengths=LENGTHS, batch_size=4, placement=Placement.front(3)))
  assert [batch["row_mask"].tolist() for batch in batches] == [
      [True] * 4, [True, True, True, False]]
  joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  assert decoded(joined)[:7] == [row["inputs"] for row in texts_of(7)]
  assert joined["row_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
  assert joined["encoder_input_tokens"].shape == (8, 15)
  assert not joined["decoder_loss_weights"][7].any()
  assert (joined["decoder_loss_weights"][:7].sum(1) == len("no 0") + 1).all()
  hosts = [list(eval_batches(cache, lengths=LENGTHS, batch_size=4, placement=Placement.front(3),
                             host_index=host, host_count=2)) for host in range(2)]
  for step, batch in enumerate(batches):
    assert_equal({name: np.concatenate([host[step][name] for host in hosts]) for name in batch},
                 batch)


@pytest.mark.parametrize("kwargs,message", [
    ({"split": "vaildation"}, "(?s)no split 'vaildation'.*did you mean 'validation'"),
    ({"lengths": {"inputs": 12}}, "no length for 'targets'"),
    ({"lengths": {"inputs": 12, "targets": 4}}, "(?s)Too many targets of 'toy'.*4 of 4"),
    ({"vocab_size": 100}, "don't fit the model's vocabulary"),
    ({"use_cached": True}, "has no offline cache"),
    ({"batch_size": 5, "host_count": 2}, "(?s)BATCH_SIZE.*5 rows, 2 hosts"),
    ({"host_index": 2, "host_count": 2}, "no such host"),
    ({"pack": True, "prompt_ids": {"toy": 0}}, "can't choose a prompt by task"),
    ({"prompt_ids": {"tou": 0}}, "(?s)isn't in the mixture.*did you mean 'toy'"),
])
def test_mistakes_are_named_before_the_first_batch(make, kwargs, message):
  with pytest.raises(UserError, match=message):
    make(task_of(4), **kwargs)


def test_a_task_that_must_be_cached_says_so(make):
  task = task_of(4, extra=[seqio.CacheDatasetPlaceholder(required=True)])
  with pytest.raises(UserError, match="(?s)only be read from seqio's offline cache.*= True"):
    make(task)


def test_rows_without_an_end_of_sequence_are_an_error(make):
  with pytest.raises(UserError, match="(?s)don't end with the end-of-seq.*4 of 4.*append_eos"):
    make(task_of(4, append_eos=False))
  plain = {name: seqio.Feature(VOCABULARY, add_eos=False) for name in FEATURES}
  assert make(task_of(4, append_eos=False, features=plain)).at(0)


def test_a_task_without_inputs_is_an_error(tmp_path):
  task = task_of(4, features={"targets": FEATURES["targets"]})
  with pytest.raises(UserError, match="(?s)has no 'inputs'.*features targets"):
    cache_task(task, "train", cache_dir=tmp_path)


def test_epochs_that_a_run_is_past_are_removed(make, tmp_path):
  train = make(task_of(8, extra=[add_noise]), stochastic=True)  # 2 steps an epoch
  first = train.at(0), train.at(11)
  early = train.caches["toy"]
  for step in range(20):
    train.at(step)
  for source in train._sources:
    source.join()
  # The first one, and the last ones with the one that was made ahead.
  assert len(list(tmp_path.iterdir())) <= 1 + sources.KEPT_EPOCHS + 1
  assert early.folder.exists() and not [each for each in tmp_path.iterdir()
                                        if each.name.startswith(".")]
  assert_equal(train.at(11), first[1])  # made again
  assert_equal(train.at(0), first[0])
  train.close()


def test_epochs_that_another_run_made_stay(make, tmp_path):
  task = task_of(4, extra=[add_noise])
  cache_task(task, "train", cache_dir=tmp_path, epoch_seed=fold(0, "data", 1))
  there = {each.name for each in tmp_path.iterdir()}
  train = make(task, stochastic=True)
  for step in range(8):
    train.at(step)
  train.close()
  assert there <= {each.name for each in tmp_path.iterdir()}


def test_rows_of_a_removed_cache_can_still_be_read(tmp_path):
  cache = cache_task(task_of(3), "train", cache_dir=tmp_path)
  assert cache.is_new and not cache_task(task_of(3), "train", cache_dir=tmp_path).is_new
  cache.remove()
  cache.remove()
  assert not list(tmp_path.iterdir()) and cache[2]["inputs_text"] == "line 2"
