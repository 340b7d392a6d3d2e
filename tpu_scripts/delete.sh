#!/usr/bin/env bash
# Deletes a TPU, with the disks of its workers. Only what is in a bucket, or fetched, is left.
#
#   delete.sh --name NAME --zone ZONE [--queued] [--yes]
#
#   --queued        it was created with --queued: deletes the queued resource and its TPU
#   --yes           does not ask
#   --keep-state    resume.sh may still bring it back
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS=''
SWITCHES='queued yes keep_state'
opt_queued=false opt_yes=false opt_keep_state=false
parse "$@"
no_arguments

if ! $opt_yes && ! $opt_dry_run; then
  read -r -p "Delete the TPU $opt_name in $opt_zone? [y/N] " answer || answer=''
  [[ $answer == [yY]* ]] || { say "Nothing was deleted."; exit 1; }
fi
if $opt_queued; then
  tpus queued-resources delete "$opt_name" --force --quiet
else
  tpus tpu-vm delete "$opt_name" --quiet
fi
run "${TPUS[@]}"
if ! $opt_keep_state && ! $opt_dry_run; then
  rm -f "$STATE/$opt_name"/{create,setup,launch}
fi
