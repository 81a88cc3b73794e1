#!/bin/sh
# Starts docker-compose.yaml. Needs Docker Engine 26 with Compose 2.24, or later ones.
set -eu
cd "$(dirname "$0")/../.."
HANDOFF_UID=$(id -u)
HANDOFF_GID=$(id -g)
SPIRE_JOIN_TOKEN=
export HANDOFF_UID HANDOFF_GID SPIRE_JOIN_TOKEN
mkdir -p deploy/compose/run
chmod 700 deploy/compose/run
spire() { docker compose exec -T spire-server /opt/spire/bin/spire-server "$@"; }

docker compose build
# The first time: configurations, and who is who.
if [ ! -e deploy/compose/run/governor.yaml ]; then
	docker compose run --rm init
	docker compose up --detach --wait spire-server
	spire entry create -data - <deploy/compose/spire/entries.json
	SPIRE_JOIN_TOKEN=$(spire token generate -spiffeID spiffe://handoff.example/host | sed 's/^Token: //')
fi
docker compose up --detach --wait spire-server spire-agent
docker compose up --detach
docker compose logs --follow planner
