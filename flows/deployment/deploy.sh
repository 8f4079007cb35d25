#!/bin/sh
# Puts the work pool, the deployments and the automation on the server that PREFECT_API_URL names, else on
# that of the workspace; may be called again. Needs CUTLINE_PHOTOS, CUTLINE_DATASET and CUTLINE_WORKSPACE.
set -eu
cd "$(dirname "$0")/../.."
. flows/deployment/client.sh
name=$(sed -n 's/^name: //p' flows/deployment/lost-runs.yaml)
prefect work-pool create cutline --type process --overwrite
prefect --no-prompt deploy --all --prefect-file flows/deployment/prefect.yaml
prefect automation inspect "$name" >/dev/null 2>&1 ||
    prefect automation create --from-file flows/deployment/lost-runs.yaml
