//! The embedded token as a PKCS#11 module of its own.
//!
//! `ekm` calls kryoptic's function list directly and exports nothing. Tests
//! need the same token behind `dlopen`, to look at its database with another
//! client and to put the faulty module in front of it.
#![expect(
    unsafe_code,
    reason = "a PKCS#11 module exports one C symbol by its name"
)]

use kryoptic_lib::fns::general::fn_get_function_list;
use kryoptic_lib::pkcs11::{CK_FUNCTION_LIST_PTR_PTR, CK_RV};

/// The one symbol that a PKCS#11 v2.40 client looks for.
#[unsafe(no_mangle)]
pub extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    fn_get_function_list(list)
}
