#!/bin/sh
# Starts a worker of the pool that deploy.sh makes. Needs CUTLINE_WORKSPACE, as deploy.sh does.
set -eu
cd "$(dirname "$0")/../.."
. flows/deployment/client.sh
exec prefect worker start --pool cutline "$@"
