"""The method of federated offsite-tuning with ScaleOT: no Flower, no sockets, no terminal.

The model owner compresses its LLM::

    full = load_model(directory, dtype=torch.bfloat16, device=device)              # models.loading
    importance = estimate_importance(full, public_blocks, settings, reporter=...)  # compression.importance: stage 1
    plan = plan_layers(importance.scores, num_adapter_layers=4, ...)               # compression.plan: N_a, alpha, beta
    emulator = build_emulator(full, plan, importance.harmonizers, ...)             # compression.emulator: stage 2

and lets it go, signed, encrypted, with one grant for each data owner::

    write_emulator(emulator, plain)
    sealed = seal_bundle(plain, destination, owner=owner_key, ...)                 # bundle
    grant = issue_grant(sealed, owner=owner_key, organisation="clinic-a", ...)

A data owner believes nothing before it is verified, and tunes an adapter on its own text::

    verified = verify_bundle(read_bundle(path), owner_public_key, now=now)
    with open_bundle(verified, grant, identity, organisation="clinic-a", now=now) as opened:
        emulator = read_emulator(opened.files, device=device)
    attached = attach_adapter(emulator.model, emulator.layout, spec)               # adapters.adapter
    attached.load(global_adapter)
    train_adapter(attached, examples, settings, ...)                               # training.local
    update = attached.state()

or, under differential privacy, lets out a release alone, which its ledger is charged for before noise is drawn::

    task = LocalTask(attached, examples, pad_token_id=0, way=mechanism.choose_way(...))
    update = mechanism.release(task, secret=SecretSource(), charge=charge, ...)    # privacy; see its README.md

The server believes an update that its organisation has signed for this very request, validates it before it averages
(``federation``), and the model owner plugs the average into the
full model, each tensor by its original layer index::

    with plugged_in(full.model, full.layout, spec, adapter) as tuned:              # adapters.plug_in
        evaluate(tuned, full.tokenizer, records, reporter=...)                     # evaluation

``report`` says what came out. For the command line alone, ``run_file`` is what a run file may say, ``config`` reads it
and ``cli`` finds the verbs.
Importing this package imports nothing heavy: take names from the modules named above.
"""
