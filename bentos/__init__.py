"""The service: who is eligible for a message now, decided from online features and logged before it is answered."""
