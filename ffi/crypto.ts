// Binding of libcrypto 3.0 (OpenSSL): names, order and types as in its headers and manual pages. What the calls mean,
// and who frees what, lies in src/pki/.
import { dlopen, FFIType as T } from "bun:ffi";

const { ptr, cstring, i32, u32, u64 } = T;
const usize = u64;
const free = { args: [ptr], returns: T.void } as const;

export const crypto = dlopen("libcrypto.so.3", {
  // openssl/bio.h
  BIO_new: { args: [ptr], returns: ptr },
  BIO_s_mem: { args: [], returns: ptr },
  BIO_new_mem_buf: { args: [ptr, i32], returns: ptr },
  BIO_read: { args: [ptr, ptr, i32], returns: i32 },
  BIO_free: { args: [ptr], returns: i32 },
  // openssl/err.h
  ERR_clear_error: { args: [], returns: T.void },
  ERR_peek_last_error: { args: [], returns: u64 },
  ERR_reason_error_string: { args: [u64], returns: cstring },
  // openssl/stack.h
  OPENSSL_sk_new_null: { args: [], returns: ptr },
  OPENSSL_sk_push: { args: [ptr, ptr], returns: i32 },
  OPENSSL_sk_num: { args: [ptr], returns: i32 },
  OPENSSL_sk_value: { args: [ptr, i32], returns: ptr },
  OPENSSL_sk_free: free,
  // openssl/asn1.h
  ASN1_TIME_print: { args: [ptr, ptr], returns: i32 },
  // openssl/evp.h
  EVP_MD_CTX_new: { args: [], returns: ptr },
  EVP_MD_CTX_free: free,
  EVP_sha1: { args: [], returns: ptr },
  EVP_sha256: { args: [], returns: ptr },
  EVP_sha512: { args: [], returns: ptr },
  EVP_DigestVerifyInit: { args: [ptr, ptr, ptr, ptr, ptr], returns: i32 },
  EVP_DigestVerify: { args: [ptr, ptr, usize, ptr, usize], returns: i32 },
  EVP_PKEY_get_base_id: { args: [ptr], returns: i32 },
  EVP_PKEY_get_group_name: { args: [ptr, ptr, usize, ptr], returns: i32 },
  EVP_PKEY_CTX_set_rsa_padding: { args: [ptr, i32], returns: i32 },
  EVP_PKEY_CTX_set_rsa_mgf1_md: { args: [ptr, ptr], returns: i32 },
  EVP_PKEY_CTX_set_rsa_pss_saltlen: { args: [ptr, i32], returns: i32 },
  // openssl/pem.h
  PEM_read_bio_X509: { args: [ptr, ptr, ptr, ptr], returns: ptr },
  PEM_read_bio_X509_CRL: { args: [ptr, ptr, ptr, ptr], returns: ptr },
  // openssl/x509.h
  X509_free: free,
  X509_get0_pubkey: { args: [ptr], returns: ptr },
  X509_get_subject_name: { args: [ptr], returns: ptr },
  X509_get0_notBefore: { args: [ptr], returns: ptr },
  X509_get0_notAfter: { args: [ptr], returns: ptr },
  X509_get_key_usage: { args: [ptr], returns: u32 },
  X509_get_extended_key_usage: { args: [ptr], returns: u32 },
  X509_get_extension_flags: { args: [ptr], returns: u32 },
  X509_NAME_cmp: { args: [ptr, ptr], returns: i32 },
  X509_NAME_print_ex: { args: [ptr, ptr, i32, u64], returns: i32 },
  X509_CRL_free: free,
  X509_CRL_get_issuer: { args: [ptr], returns: ptr },
  d2i_X509_CRL_bio: { args: [ptr, ptr], returns: ptr },
  // openssl/x509_vfy.h
  X509_STORE_new: { args: [], returns: ptr },
  X509_STORE_free: free,
  X509_STORE_add_cert: { args: [ptr, ptr], returns: i32 },
  X509_STORE_add_crl: { args: [ptr, ptr], returns: i32 },
  X509_STORE_set_flags: { args: [ptr, u64], returns: i32 },
  X509_STORE_CTX_new: { args: [], returns: ptr },
  X509_STORE_CTX_free: free,
  X509_STORE_CTX_init: { args: [ptr, ptr, ptr, ptr], returns: i32 },
  X509_STORE_CTX_get0_param: { args: [ptr], returns: ptr },
  X509_STORE_CTX_get0_chain: { args: [ptr], returns: ptr },
  X509_STORE_CTX_get_error: { args: [ptr], returns: i32 },
  X509_STORE_CTX_get_error_depth: { args: [ptr], returns: i32 },
  X509_STORE_CTX_get_current_cert: { args: [ptr], returns: ptr },
  X509_VERIFY_PARAM_set_flags: { args: [ptr, u64], returns: i32 },
  X509_VERIFY_PARAM_set_depth: { args: [ptr, i32], returns: T.void },
  X509_VERIFY_PARAM_set_auth_level: { args: [ptr, i32], returns: T.void },
  X509_verify_cert: { args: [ptr], returns: i32 },
  X509_verify_cert_error_string: { args: [T.i64], returns: cstring },
  // openssl/ocsp.h
  d2i_OCSP_RESPONSE: { args: [ptr, ptr, T.i64], returns: ptr },
  OCSP_RESPONSE_free: free,
  OCSP_response_status: { args: [ptr], returns: i32 },
  OCSP_response_get1_basic: { args: [ptr], returns: ptr },
  OCSP_BASICRESP_free: free,
  OCSP_basic_verify: { args: [ptr, ptr, ptr, u64], returns: i32 },
  OCSP_cert_to_id: { args: [ptr, ptr, ptr], returns: ptr },
  OCSP_CERTID_free: free,
  OCSP_resp_find_status: { args: [ptr, ptr, ptr, ptr, ptr, ptr, ptr], returns: i32 },
  OCSP_check_validity: { args: [ptr, ptr, T.i64, T.i64], returns: i32 },
}).symbols;

/** An address that libcrypto gave: whoever made it frees it. */
export type Pointer = NonNullable<ReturnType<typeof crypto.BIO_new>>;
