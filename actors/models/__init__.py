"""The interface behind which every model stands, and the models that need neither a service nor a device."""
