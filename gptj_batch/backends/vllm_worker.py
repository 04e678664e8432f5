"""ReplicaWorker: what is added to vLLM's worker, in whichever process that runs. vLLM imports it there by its name.

Importing it does two things, before any weight is loaded and any memory taken: this process from now on ends with its
replica, and our model for question answering is known to vLLM.
"""

from gptj_batch.backends.vllm_process import end_with_replica
from gptj_batch.backends.vllm_spans import register


class ReplicaWorker:
    """Adds nothing to the worker's methods; see the module."""


end_with_replica()
register()
