# Sourced by the scripts beside it: the address and the password of the `cutline server` of the workspace
# CUTLINE_WORKSPACE, where the environment names no other server.
if [ -z "${PREFECT_API_URL:-}" ]; then
    PREFECT_API_URL=$(cat "$CUTLINE_WORKSPACE/prefect/address")
    PREFECT_API_AUTH_STRING=$(cat "$CUTLINE_WORKSPACE/prefect/password")
    export PREFECT_API_URL PREFECT_API_AUTH_STRING
fi
