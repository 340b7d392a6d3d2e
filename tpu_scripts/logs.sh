#!/usr/bin/env bash
# Shows the log of a run.
#
#   logs.sh --name NAME --zone ZONE --run RUN [--follow] [--worker W]
#
#   --follow        goes on until Ctrl-C
#   --worker W      0, 1, ... or all (0; with --follow one at a time)
#   --lines N       how many of the last ones (100)
#   --status        instead: whether it runs, or how it ended, on every worker
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='run worker lines'
SWITCHES='follow status'
opt_run='' opt_worker=0 opt_lines=100 opt_follow=false opt_status=false
parse "$@"
no_arguments
valid_run "$opt_run"
[[ $opt_lines =~ ^[0-9]+$ ]] || die "--lines is not a number" "$opt_lines" "0 or more" "--lines 100"
[[ $opt_worker =~ ^(all|[0-9]+)$ ]] || die "There is no such worker" "--worker $opt_worker" \
  "a number or all" "--worker 0"
if $opt_follow && [[ $opt_worker == all ]]; then
  die "Only one worker can be followed" "--worker all --follow" "a number" "--worker 0"
fi

need_ready
if $opt_status; then
  on_workers all bash "$REMOTE_SCRIPTS/status.sh" "$opt_run"
elif $opt_follow; then
  on_workers "$opt_worker" tail -n "$opt_lines" -F "prompt_tuning_runs/$opt_run/log"
else
  on_workers "$opt_worker" tail -n "$opt_lines" "prompt_tuning_runs/$opt_run/log"
fi
