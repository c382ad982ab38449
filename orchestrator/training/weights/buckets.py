"""The wire format of published weights, as this package offers it; the learner, which may not import this
package, shares its home.
"""

from orchestrator.training.buckets import Bucket, Piece, flatten, unflatten

__all__ = ["Bucket", "Piece", "flatten", "unflatten"]
