"""Compiled engines on disk: what they were built from and for, which of them fits here, and where they are kept."""

from .record import FLAVOURS, EngineIdentity, EngineRecord, Profile, ShapeRange

__all__ = ["FLAVOURS", "EngineIdentity", "EngineRecord", "Profile", "ShapeRange"]
