"""A gcloud that records its calls, answers from a table, and knows which flags the real one has.

  FAKE_GCLOUD/calls      a line a call, JSON
  FAKE_GCLOUD/answers    lines `[regular expression over the call, exit code, output, times]`; the
                         first one that matches and has times left answers. Else: code 0, nothing
"""

import json
import os
import re
import sys
from pathlib import Path

# Of Google Cloud SDK 527 (its table of completions), and flags that every command has.
GLOBAL = {"--project", "--quiet", "--format"}
_NODE = {"--zone", "--accelerator-type", "--scopes", "--network", "--subnetwork",
         "--service-account", "--internal-ips", "--spot", "--reserved", "--labels", "--async",
         "--data-disk", "--description", "--metadata", "--range", "--tags", "--topology", "--type"}
_SSH = {"--zone", "--worker", "--internal-ip", "--plain", "--ssh-key-file",
        "--strict-host-key-checking", "--dry-run", "--force-key-file-overwrite"}
KNOWN = {
  ("compute", "tpus", "tpu-vm", "create"): _NODE | {"--version", "--preemptible"},
  ("compute", "tpus", "tpu-vm", "delete"): {"--zone", "--async"},
  ("compute", "tpus", "tpu-vm", "describe"): {"--zone"},
  ("compute", "tpus", "tpu-vm", "ssh"): _SSH | {"--command", "--ssh-flag", "--output-directory"},
  ("compute", "tpus", "tpu-vm", "scp"): _SSH | {"--recurse", "--compress", "--scp-flag"},
  ("compute", "tpus", "queued-resources", "create"): _NODE | {
    "--runtime-version", "--node-id", "--node-count", "--node-prefix", "--guaranteed",
    "--valid-after-duration", "--valid-after-time", "--valid-until-duration",
    "--valid-until-time"},
  ("compute", "tpus", "queued-resources", "delete"): {"--zone", "--async", "--force"},
  ("compute", "tpus", "queued-resources", "describe"): {"--zone"},
  ("storage", "rsync"): {"--recursive"},
}


def main(words):
  folder = Path(os.environ["FAKE_GCLOUD"])
  with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\n")
  verb = tuple(word for word in words if not word.startswith("-"))
  known = next((flags for start, flags in KNOWN.items() if verb[:len(start)] == start), None)
  flags = {word.split("=")[0] for word in words if word.startswith("-")}
  if known is None or flags - known - GLOBAL:
    print(f"ERROR: unrecognized arguments: {words}", file=sys.stderr)
    return 64
  table = folder / "answers"
  answers = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
  for answer in answers:
    if answer[3] and re.search(answer[0], " ".join(words)):
      answer[3] -= 1
      table.write_text("".join(json.dumps(each) + "\n" for each in answers))
      print(answer[2], file=sys.stderr if answer[1] else sys.stdout)
      return answer[1]
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
