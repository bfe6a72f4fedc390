"""Cosmos-Reason1, the text encoder of Cosmos-Predict2.5 and OmniDreams."""

from fdjax_models.networks.cosmos_reason1.encoder import (
    CosmosReason1Encoder,
    CosmosReason1EncoderConfig,
)

__all__ = ["CosmosReason1Encoder", "CosmosReason1EncoderConfig"]
