//! outside
//! Azure Key Vault through azure_security_keyvault_keys: translates calls and answers, decides nothing.
