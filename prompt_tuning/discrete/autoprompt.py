"""AutoPrompt: discrete trigger tokens for a frozen T5, found by its gradient.

Shin et al. 2020 (arXiv 2010.15980); the step is `search.py`. Positions are gone through in an order
drawn anew for each sweep. All that the search draws is a function of (seed, step), and its state is
saved after every step, so a killed search goes on as if nothing had happened. It leaves

  prompt.npy    the embeddings of the best trigger: a prompt for `eval`, `infer` and `train`
  trigger.json  its tokens, and the tokens of the classes
  swaps.csv     every step: position, tokens, loss before and after, whether it was exchanged
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning import scoring
from prompt_tuning.batches import fold
from prompt_tuning.checkpoints import backbone as backbone_files
from prompt_tuning.discrete import autoprompt_config, words
from prompt_tuning.discrete.autoprompt_config import AutoPromptConfig, Data, Rows
from prompt_tuning.discrete.search import Search, answer_states, project
from prompt_tuning.disk import write_text
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PAD_ID
from prompt_tuning.run_dir import RunDir, describe, environment
from prompt_tuning.trees import Split


@dataclasses.dataclass
class State:
  """What a resumed search remembers.

  Attributes:
    step: steps that are done.
    trigger, loss: the present ones, on the search rows.
    best: step, trigger, accuracy and loss of the best evaluation.
    answers: `[C][K][U]` ids of the classes' texts.
    start: the first trigger.
    swaps: a row a step.
  """

  step: int
  trigger: list[int]
  loss: float
  best: dict[str, Any]
  answers: list[list[list[int]]]
  start: list[int]
  swaps: list[dict[str, Any]]


class AutoPrompt:
  """One search; `run` is the way in."""

  def __init__(self, config: AutoPromptConfig, config_text: str):
    self.config = config
    config.model.check()
    self._tokenizer = config.model.tokenizer()
    self._soft = autoprompt_config.soft_prompt(config)
    self.run_dir = RunDir(config.model_dir)
    self.run_dir.check(describe(config))
    self._data: Data = autoprompt_config.read(config)
    answers = autoprompt_config.label_answers(config, self._data.labels)
    self._allowed = words.allowed(self._tokenizer, config.model.backbone.vocab_size,
                                  excluded=answers.ravel().tolist(), words_only=config.words_only)
    if config.candidates > self._allowed.sum():
      raise UserError("There are fewer tokens than candidates", found=f"{self._allowed.sum()}",
                      wanted=f"CANDIDATES = {config.candidates}", fix="lower CANDIDATES")
    self.run_dir.claim(describe(config), self._data.fingerprint)
    self.run_dir.write_config(config_text)
    self._backbone = config.model.load_backbone(config.seed)
    self._fingerprint = backbone_files.fingerprint(self._backbone)
    self.run_dir.check_backbone(config.model.initial_checkpoint_path, self._fingerprint)
    self._path = self.run_dir.path / "search.json"
    self.state = self._resumed() or self._fresh(answers)
    # Neither the texts of a class nor parts of them may stand in the trigger.
    used = np.unique(self.state.answers)
    self._allowed[used[used < len(self._allowed)]] = False
    self.search = self._searcher(config.model.module())

  def run(self) -> dict[str, Any]:
    """Searches to the end; the summary."""
    state, config = self.state, self.config
    self.run_dir.forget_after(state.step - 1, state.step - 1)
    self._write_summary({})
    while state.step < config.train_steps:
      self.step()
      self._save()
    summary = self._finish()
    self.run_dir.close()
    return summary

  def step(self) -> None:
    """One position, one exchange, or none."""
    state, config, search = self.state, self.config, self._data.search
    position = position_of(config.seed, state.step, len(state.trigger))
    batch = self._data.batch(config.seed, state.step, config.batch_size)
    trigger = np.array(state.trigger, np.int32)
    gradient = self.search.gradient(trigger, batch.tokens, batch.classes)
    tried, losses, _ = self.search.swaps(trigger, position, gradient, search.tokens,
                                         search.classes)
    best = int(losses.argmin())
    better = bool(losses[best] < state.loss)
    state.swaps.append({
      "step": state.step, "position": position,
      "from": self._tokenizer.piece(state.trigger[position]),
      "to": self._tokenizer.piece(int(tried[best])), "before": state.loss,
      "after": float(losses[best]), "exchanged": better})
    if better:
      state.trigger[position], state.loss = int(tried[best]), float(losses[best])
    self.run_dir.log(state.step, "train", {"loss": state.loss})
    state.step += 1
    if state.step % config.eval_period == 0 or state.step == config.train_steps:
      self._evaluate()

  def _evaluate(self) -> None:
    """Keeps the trigger if it is the best on SPLIT so far: by accuracy, then by loss."""
    state, split = self.state, self.config.split
    found = self._measure(self.search, self.search.embedding(np.array(state.trigger)),
                          self._data.splits[split])
    self.run_dir.log(state.step - 1, split, found)
    if (found["accuracy"], -found["loss"]) > (state.best["accuracy"], -state.best["loss"]):
      state.best = {"step": state.step, "trigger": list(state.trigger), **found}

  def _measure(self, search: Search, embedding: np.ndarray, rows: Rows) -> dict[str, float]:
    losses, scores = search.scores(embedding, rows.tokens, rows.classes)
    return {"loss": float(losses.astype(np.float64).mean()),
            "accuracy": float((scores.argmax(axis=1) == rows.classes).mean())}

  def _searcher(self, module: Any) -> Search:
    config = self.config
    return Search(module, self._backbone, np.array(self.state.answers, np.int32),
                  allowed=self._allowed, candidates=config.candidates,
                  prefix=autoprompt_config.prefix(config), over_labels=config.over_labels,
                  rows_at_once=config.batch_size)

  def _resumed(self) -> State | None:
    if not self._path.is_file():
      return None
    state = State(**json.loads(self._path.read_text(encoding="utf-8")))
    if state.step > self.config.train_steps:
      raise UserError("The search in MODEL_DIR has gone further", found=f"{state.step} steps",
                      wanted=f"TRAIN_STEPS = {self.config.train_steps} or more in a resume",
                      fix=f"--gin.TRAIN_STEPS={state.step}, or a new MODEL_DIR")
    return state

  def _fresh(self, answers: np.ndarray) -> State:
    config = self.config
    if self._soft is not None:
      table = np.asarray(self._backbone["token_embedder"]["embedding"], np.float32)
      start = project(self._soft, table, self._allowed)
    else:
      start = autoprompt_config.start_words(config, self._allowed)
    if config.label_words is not None:
      answers = self._find_answers(start)
    self.state = State(0, start.tolist(), 0.0, {}, answers.tolist(), start.tolist(), [])
    search = self._searcher(config.model.module())
    self.state.loss = self._measure(search, search.embedding(start), self._data.search)["loss"]
    self.state.best = {"step": 0, "trigger": start.tolist(), **self._measure(
      search, search.embedding(start), self._data.splits[config.split])}
    return self.state

  def _find_answers(self, start: np.ndarray) -> np.ndarray:
    """`[C, K, 1]`: tokens that a classifier finds for the classes (`words.label_words`)."""
    config, data = self.config, self._data
    rows = Rows(np.concatenate([data.search.tokens, data.pool.tokens]),
                np.concatenate([data.search.classes, data.pool.classes]))
    rows = rows.take(slice(len(rows.tokens) // config.batch_size * config.batch_size))
    table = np.asarray(self._backbone["token_embedder"]["embedding"], np.float32)
    params = {"backbone": self._backbone, "prompt": {
      "embedding": table[np.asarray(start)]}}
    states = np.concatenate([np.asarray(scoring.call(
      {}, params, Split({}), config.model.module(), answer_states,
      rows.tokens[i:i + config.batch_size], prefix=autoprompt_config.prefix(config)))
      for i in range(0, len(rows.tokens), config.batch_size)])
    dense = self._backbone["decoder"].get("logits_dense", {}).get("kernel")
    output = table.astype(np.float64) if dense is None else np.asarray(dense, np.float32).T.astype(
      np.float64)
    keep = words.allowed(self._tokenizer, len(output), words_only=config.words_only)
    assert config.label_words is not None
    found, _ = words.label_words(states.astype(np.float64), rows.classes, output, keep,
                                 len(data.labels), config.label_words)
    return found[..., None].astype(np.int32)

  def _save(self) -> None:
    write_text(self._path, json.dumps(dataclasses.asdict(self.state)) + "\n")

  def _finish(self) -> dict[str, Any]:
    """Scores every prompt that matters on every split, and writes what the search is for."""
    state, config = self.state, self.config
    self._save()
    rows = {"search rows": self._data.search, **self._data.splits}
    start = self.search.embedding(np.array(state.start))
    found = self.search.embedding(np.array(state.best["trigger"]))
    prompts = {"start" if self._soft is None else "its nearest words": start, "found": found}
    if self._soft is not None:
      prompts = {"soft prompt": self._soft, **prompts}
    plain = self._searcher(dataclasses.replace(config.model, prompt=None, template=None).module())
    results = {"no prompt": {name: self._measure(plain, start, without_trigger(part))
                             for name, part in rows.items()}}
    results |= {label: {name: self._measure(self.search, prompt, part)
                        for name, part in rows.items()} for label, prompt in prompts.items()}
    self.run_dir.write_prompt({"embedding": found}, {})
    write_text(self.run_dir.path / "trigger.json", json.dumps(self.described(), indent=1,
                                                              ensure_ascii=False) + "\n")
    if state.swaps:
      self.run_dir.write_table("swaps.csv", list(state.swaps[0]), state.swaps)
    return self._write_summary(results)

  def described(self) -> dict[str, Any]:
    """The best trigger and the texts of the classes, for people."""
    ids = self.state.best["trigger"]
    piece, text = self._tokenizer.piece, self._tokenizer.decode(ids)
    return {"ids": ids, "pieces": [piece(i) for i in ids], "text": text,
            # A text that is cut into other tokens is another prompt.
            "text_gives_these_ids": self._tokenizer.encode(text) == ids,
            "start": [piece(i) for i in self.state.start],
            "classes": {label: [self._tokenizer.decode(each) for each in texts] for label, texts
                        in zip(self._data.labels, self.state.answers, strict=True)}}

  def _write_summary(self, results: Mapping[str, Any]) -> dict[str, Any]:
    config = self.config
    summary = {"task": config.task.name, "steps": self.state.step, "best_step":
               self.state.best["step"], "long_inputs": self._data.long_inputs,
               "backbone": {"from": config.model.initial_checkpoint_path,
                            "fingerprint": self._fingerprint},
               "majority": {name: float(np.bincount(rows.classes).max() / len(rows.classes))
                            for name, rows in self._data.splits.items()},
               "results": results, "exchanges": sum(s["exchanged"] for s in self.state.swaps),
               "compilations": dict(self.search.traces), **environment(config.seed)}
    self.run_dir.write_summary(summary)
    return summary


def position_of(seed: int, step: int, length: int) -> int:
  """The position of a step: every sweep goes through all of them, in an order of its own."""
  sweep, place = divmod(step, length)
  return int(np.random.default_rng(fold(seed, "positions", sweep)).permutation(length)[place])


def without_trigger(rows: Rows) -> Rows:
  """Rows with the template's anchor words alone, as wide as before."""
  kept = np.zeros_like(rows.tokens)
  for out, ids in zip(kept, rows.tokens, strict=True):
    real = ids[ids > PAD_ID]
    out[:len(real)] = real
  return Rows(kept, rows.classes)
