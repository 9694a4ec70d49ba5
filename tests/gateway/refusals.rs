//! What an attacker gets, way by way.
