"""The page of `harness ui`: runs, their curves and logs, a chat with their endpoints, and plans; for this machine.

The page does nothing of its own: it shows what records and SageMaker say, and starts the same verbs as a shell does,
as processes of their own. NiceGUI is an optional extra (docs/internals/dependencies.md) that only `pages.py` and
`server.py` import.
"""
