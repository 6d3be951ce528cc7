//! The SG_IO ioctl of Linux' SCSI generic driver, version 3.
//!
//! This is the second and last file of the crate with `unsafe` in it. rustix
//! makes the system call; that its argument points to buffers is nothing that a
//! type could say.
//!
//! Source: Linux, `include/scsi/sg.h`.
#![expect(
    unsafe_code,
    reason = "SG_IO takes pointers to buffers; they come from slices that outlive the call"
)]

use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io;
use rustix::ioctl::{Opcode, Updater, ioctl};

use crate::scsi::{Completion, Data};

/// What the driver says of a command that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// SAM status.
    pub(super) status: u8,
    /// `DID_` code of the host adapter.
    pub(super) host: u16,
    /// `DRIVER_` code of the kernel.
    pub(super) driver: u16,
    /// What of the data was not transferred, in bytes; some adapters count below zero.
    pub(super) residual: i32,
    /// Sense data, empty where there is none.
    pub(super) sense: Vec<u8>,
}

/// Sends a command to an open `/dev/sgN` and waits for its end. A key in `data` is read where it
/// lies, by the kernel.
///
/// A signal in the middle is `EINTR`, and the end of the command is not known then; where the
/// signal's handler has `SA_RESTART`, the kernel sends the command a second time.
pub(super) fn sg_io(
    device: BorrowedFd<'_>,
    cdb: &[u8],
    data: Data<'_>,
    milliseconds: u32,
) -> io::Result<Ended> {
    let mut sense = [0u8; Completion::MAX_SENSE];
    let cdb_len = u8::try_from(cdb.len()).map_err(|_| io::Errno::INVAL)?;
    let (direction, buffer, len) = match data {
        Data::None => (DXFER_NONE, ptr::null_mut(), 0),
        Data::In(buffer) => (DXFER_FROM_DEV, buffer.as_mut_ptr(), buffer.len()),
        Data::Out(bytes) => (DXFER_TO_DEV, bytes.as_ptr().cast_mut(), bytes.len()),
    };
    let mut header = SgIoHdr {
        interface_id: c_int::from(b'S'),
        dxfer_direction: direction,
        cmd_len: cdb_len,
        mx_sb_len: SENSE_LEN,
        iovec_count: 0,
        dxfer_len: c_uint::try_from(len).map_err(|_| io::Errno::INVAL)?,
        dxferp: buffer.cast(),
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: milliseconds,
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `SgIoHdr` has the layout of `sg_io_hdr_t`, which SG_IO reads and writes. Its three
    // pointers are to slices that are borrowed until after the call, with their true lengths. The
    // kernel writes to `sbp`, and to `dxferp` for DXFER_FROM_DEV, where it comes from a `&mut`; it
    // reads `cmdp`, and `dxferp` for DXFER_TO_DEV. SG_IO waits, so nothing is written afterwards.
    unsafe { ioctl(device, Updater::<SG_IO, SgIoHdr>::new(&mut header))? };
    let sense = sense.get(..usize::from(header.sb_len_wr)).unwrap_or(&sense);
    Ok(Ended {
        status: header.status,
        host: header.host_status,
        driver: header.driver_status,
        residual: header.resid,
        sense: sense.to_vec(),
    })
}

/// `sg_io_hdr_t`.
#[repr(C)]
struct SgIoHdr {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: c_uchar,
    mx_sb_len: c_uchar,
    iovec_count: c_ushort,
    dxfer_len: c_uint,
    dxferp: *mut c_void,
    cmdp: *const c_uchar,
    sbp: *mut c_uchar,
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    status: c_uchar,
    masked_status: c_uchar,
    msg_status: c_uchar,
    sb_len_wr: c_uchar,
    host_status: c_ushort,
    driver_status: c_ushort,
    resid: c_int,
    duration: c_uint,
    info: c_uint,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<SgIoHdr>() == 88);

const SG_IO: Opcode = 0x2285;
const DXFER_NONE: c_int = -1;
const DXFER_TO_DEV: c_int = -2;
const DXFER_FROM_DEV: c_int = -3;
/// [`Completion::MAX_SENSE`].
const SENSE_LEN: u8 = 252;
