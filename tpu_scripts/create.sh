#!/usr/bin/env bash
# Creates a TPU VM, or a slice of a pod, and waits until it is ready.
#
#   create.sh --name NAME --zone ZONE --type TYPE [--spot] [--queued]
#
#   --type TYPE     v2-8, v3-32, v4-8, v5e-8, v5p-8, v6e-16, ...: as `prompt-tuning plan --topology`
#                   spells it; gcloud's v5litepod-8 too. v2, v3, v4 and v5p count cores (two a
#                   chip), v5e and v6e chips
#   --spot          cheaper, and Google may take it back at any moment (resume.sh brings it back)
#   --queued        asks for it by a queued resource, which waits for capacity
#   --valid-until T of a queued resource: give up after T, such as 6h
#   --reserved      of a queued resource or a VM: from your reservation
#   --version V     runtime image (the usual one of the type)
#   --network N, --subnetwork S, --service-account A, --internal-ips   as in gcloud
#   --wait MINUTES  how long to wait for a queued resource (0: do not wait; 1440)
#   --project P     of Google Cloud (gcloud's own setting)
#   --dry-run       only shows the calls of gcloud
#
# Created already, it is left alone. TPU_NAME, TPU_ZONE and TPU_PROJECT stand for the flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='type version valid_until network subnetwork service_account wait'
SWITCHES='spot queued reserved internal_ips'
opt_type='' opt_version='' opt_valid_until='' opt_network='' opt_subnetwork='' opt_service_account=''
opt_wait=1440 opt_spot=false opt_queued=false opt_reserved=false opt_internal_ips=false
parse "$@"
no_arguments

kinds='v2, v3, v4, v5e, v5p or v6e, a dash, and a number: v5e-8'
[[ $opt_type =~ ^([a-z0-9]+)-([1-9][0-9]*)$ ]] || die "The TPU's type cannot be read" \
  "--type '$opt_type'" "$kinds" "see prompt-tuning plan for one that the model fits"
kind=${BASH_REMATCH[1]} count=${BASH_REMATCH[2]}
image=tpu-ubuntu2204-base per_host=8
case $kind in
  v2 | v3 | v4) ;;
  v5e | v5litepod) kind=v5litepod image=v2-alpha-tpuv5-lite per_host=1 ;;
  v5p) image=v2-alpha-tpuv5 ;;
  v6e) image=v2-alpha-tpuv6e per_host=1 ;;
  tpu7x | v7x | ironwood) die "TPU7x is not offered as a VM" "--type $opt_type" \
    "a type that the TPU API has" "use GKE: tpu_scripts/gke/README.md" ;;
  *) die "The TPU's type is unknown" "--type $opt_type" "$kinds" "see prompt-tuning plan" ;;
esac
((count % per_host == 0)) || die "There is no such slice" "--type $opt_type" \
  "a multiple of 8: $kind counts cores, a host has 8" "$kind-$((count + per_host - count % per_host))"
type=$kind-$count
image=${opt_version:-$image}
[[ $opt_wait =~ ^[0-9]+$ ]] || die "--wait is not a number of minutes" "$opt_wait" "0 or more" \
  "--wait 60"
if [[ -n $opt_valid_until ]] && ! $opt_queued; then
  die "Only a queued resource can expire" "--valid-until without --queued" "--queued" "add it"
fi

options=("--accelerator-type=$type" "--scopes=https://www.googleapis.com/auth/cloud-platform")
[[ -z $opt_network ]] || options+=("--network=$opt_network")
[[ -z $opt_subnetwork ]] || options+=("--subnetwork=$opt_subnetwork")
[[ -z $opt_service_account ]] || options+=("--service-account=$opt_service_account")
! $opt_internal_ips || options+=(--internal-ips)
! $opt_spot || options+=(--spot)
! $opt_reserved || options+=(--reserved)

queue_state() {
  local answer
  tpus queued-resources describe "$opt_name" "--format=value(state.state)"
  answer=$("${TPUS[@]}")
  printf '%s\n' "${answer##*$'\n'}"
}

wait_for_queue() {
  local deadline=$((SECONDS + ${TPU_MINUTE_SECONDS:-60} * opt_wait)) state='' last=''
  while true; do
    state=$(queue_state)
    [[ $state == "$last" ]] || say "$opt_name: $state"
    last=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        die "The queued resource will not become a TPU" "$opt_name is $state" "ACTIVE" \
          "delete.sh --queued, then another zone, a smaller type, or without --spot" ;;
    esac
    ((SECONDS < deadline)) || {
      say "$opt_name is still $state; the same command waits on. delete.sh --queued gives up."
      exit 3
    }
    sleep "${TPU_POLL_SECONDS:-30}"
  done
}

remember create "$@"
state=MISSING
$opt_dry_run || state=$(tpu_state)
case $state in
  MISSING) ;;
  READY) say "$opt_name is there and ready."; exit 0 ;;
  CREATING) say "$opt_name is being created." ;;
  *) die "There is a TPU of that name, which is not ready" "$opt_name is $state" "no TPU, or READY" \
    "resume.sh --name $opt_name --zone $opt_zone, or delete.sh" ;;
esac

if $opt_queued; then
  [[ -z $opt_valid_until ]] || options+=("--valid-until-duration=$opt_valid_until")
  tpus queued-resources create "$opt_name" "--node-id=$opt_name" "--runtime-version=$image" \
    "${options[@]}"
  create=("${TPUS[@]}")
  # A queued resource outlives the command that asked for it: asking twice would be an error.
  tpus queued-resources describe "$opt_name" "--format=value(state.state)"
  if $opt_dry_run || ! "${TPUS[@]}" > /dev/null 2>&1; then run "${create[@]}"; fi
  $opt_dry_run || ((opt_wait == 0)) || wait_for_queue
elif [[ $state == MISSING ]]; then
  tpus tpu-vm create "$opt_name" "--version=$image" "${options[@]}"
  run "${TPUS[@]}"
fi
say "Next: setup.sh --name $opt_name --zone $opt_zone"
