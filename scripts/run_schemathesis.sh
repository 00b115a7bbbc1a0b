#!/usr/bin/env bash
# Schemathesis, in an environment of its own, against a server of this checkout: no answer may be a
# server error or differ from what /openapi.json says. Run from the repository's root.
set -euo pipefail

TOOL=build/schemathesis
PORT=8799
URL=http://127.0.0.1:$PORT

test -x $TOOL/bin/pip || .venv/bin/python -m venv $TOOL
$TOOL/bin/pip install --quiet schemathesis==4.32.5

.venv/bin/dff serve --no-ray --port $PORT 2>build/schemathesis.log &
server=$!
trap 'kill $server 2>/dev/null; wait $server || true' EXIT
until curl --silent --fail --output /dev/null $URL/readyz; do
    kill -0 $server
    sleep 0.5
done
cd build  # it leaves a cache where it runs
# The deadline is fixed, since one of 5e-324 s is refused by status 503, as it should be.
schemathesis/bin/schemathesis run $URL/openapi.json --header 'Deadline: 30' --seed "${SEED:-1}" \
    --max-examples "${EXAMPLES:-100}" --phases examples,coverage,fuzzing --request-timeout 70 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --suppress-health-check all --no-color
