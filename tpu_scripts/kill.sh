#!/usr/bin/env bash
# Stops a run on every worker, or whatever holds the chips.
#
#   kill.sh --name NAME --zone ZONE --run RUN
#   kill.sh --name NAME --zone ZONE --all
#
#   --run RUN       SIGTERM, on which a run saves and stops; SIGKILL to what is left after a minute
#   --all           besides: every process of yours that holds a chip, and libtpu's lock file. For
#                   "The TPU is already in use"
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='run'
SWITCHES='all'
opt_run='' opt_all=false
parse "$@"
no_arguments
if $opt_all; then
  [[ -z $opt_run ]] || die "--all stops every run" "--run $opt_run --all" "one of them" \
    "leave one out"
  target=--all
else
  valid_run "$opt_run"
  target=$opt_run
fi

need_ready
on_workers all bash "$REMOTE_SCRIPTS/stop.sh" "$target"
