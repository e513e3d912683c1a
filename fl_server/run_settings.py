"""From the run file, which people write, to what the server has to know of one run."""

from typing import Any

from fl_server.owner import OwnerRunSettings
from fl_server.privacy import asked_training, server_noise
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.federation.rules import Aggregation
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed


def run_settings(
    run: RunFile, spec: AdapterSpec, bundle_digest: str, *, name: str, **where_and_when: Any
) -> OwnerRunSettings:
    """Returns the settings of the run ``name``, which tunes an adapter in the emulator of a sealed bundle.

    ``where_and_when`` is what the run file does not know: registry, audit log, canary, how long nodes are waited for.
    """
    federation = run.federation
    return OwnerRunSettings(
        run=name,
        clients=federation.clients,
        clients_per_round=federation.clients_per_round,
        rounds=federation.rounds,
        local_steps=federation.local_steps,
        batch_size=federation.batch_size,
        learning_rate=federation.learning_rate,
        optimizer=federation.optimizer,
        max_tokens=federation.max_tokens,
        aggregation=Aggregation(federation.aggregation),
        trimmed_share=federation.trimmed_share,
        assumed_attackers=federation.assumed_attackers,
        adapter=spec,
        bundle_digest=bundle_digest,
        privacy=asked.privacy if (asked := asked_training(run)) else None,
        client_level=server_noise(run),
        seed=derive_seed(run.seed, "federation"),
        quorum=federation.quorum,
        over_selection=federation.over_selection,
        round_deadline_seconds=federation.round_deadline_seconds,
        **where_and_when,
    )
