#!/usr/bin/env bash
# Starts one command on every worker of a TPU, detached: it goes on when this terminal is closed.
#
#   launch.sh --name NAME --zone ZONE --run RUN -- prompt-tuning train --gin_file=... --gin.X=...
#
#   --run RUN       names the log and the process on the workers
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
#
# The command starts in the home folder of a worker; `env NAME=VALUE prompt-tuning ...` sets a variable.
# On a slice of several hosts the processes find each other (docs/hosts.md), and MODEL_DIR must be a
# folder that all of them see: bucket/... (setup.sh --bucket). The same command resumes a run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='run'
SWITCHES=''
opt_run=''
parse "$@"
valid_run "$opt_run"
((${#ARGS[@]})) || die "There is nothing to launch" "no command after --" \
  "-- prompt-tuning train --gin_file=..." "give the command that you would type on a worker"

remember launch "$@"
need_ready
on_workers all bash "$REMOTE_SCRIPTS/start.sh" "$opt_run" "${ARGS[@]}"
say "Follow it: logs.sh --name $opt_name --zone $opt_zone --run $opt_run --follow"
