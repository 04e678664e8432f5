"""ReplicaWorker: what is added to vLLM's worker, in whichever process that runs. vLLM imports it there by its name.

Importing it does three things, before any weight is loaded and any memory taken: this process from now on ends with its
replica, what first goes wrong in it is kept for the replica's message, and our models are known to vLLM.
"""

from gptj_batch.backends.vllm_models import register
from gptj_batch.backends.vllm_process import end_with_replica, keep_cause


class ReplicaWorker:
    """Adds nothing to the worker's methods; see the module."""


end_with_replica()
keep_cause()
register()
