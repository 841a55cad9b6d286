//! The stored form of a reply's frames, or of the error that ends the reply.

use bytes::Bytes;
use smol_str::SmolStr;
use sqlx::Row;

use super::super::codec::{self, Reader};
use super::super::error::{Sql, damaged};
use event_transport::Frame;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Headers;

/// The kinds of error that keep their kind in another process; every other kind becomes `Unavailable`. The index is
/// stored: only append.
const KINDS: [ErrorKind; 6] = [
    ErrorKind::Unavailable,
    ErrorKind::Timeout,
    ErrorKind::NoResponder,
    ErrorKind::TooLarge,
    ErrorKind::Closed,
    ErrorKind::Remote,
];

pub(super) fn write_frame(frame: &Result<Frame>) -> Vec<u8> {
    let mut out = Vec::new();
    match frame {
        Ok(frame) => {
            out.push(u8::from(frame.last));
            codec::put_text(&mut out, &frame.content_type);
            codec::put_number(&mut out, frame.headers.len() as u64);
            for (name, value) in frame.headers.iter() {
                codec::put_text(&mut out, name);
                codec::put_text(&mut out, value);
            }
            out.extend_from_slice(&frame.payload);
        }
        Err(error) => {
            let kind = KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or(0);
            out.push(2 + kind as u8);
            codec::put_text(&mut out, &error.to_string());
        }
    }
    out
}

pub(super) fn read_frame(row: &sqlx::sqlite::SqliteRow) -> Sql<(i64, SmolStr, Result<Frame>)> {
    let request = SmolStr::new(row.try_get::<&str, _>(1)?);
    let frame = parse_frame(Bytes::copy_from_slice(row.try_get(2)?));
    Ok((row.try_get(0)?, request, frame.ok_or_else(|| damaged("a frame cannot be read"))?))
}

fn parse_frame(bytes: Bytes) -> Option<Result<Frame>> {
    let flag = *bytes.first()?;
    let mut reader = Reader::new(bytes.slice(1..));
    if flag >= 2 {
        let kind = *KINDS.get(flag as usize - 2)?;
        return Some(Err(Error::new(kind, reader.text()?.to_string()).during("request")));
    }
    let content_type = reader.text()?;
    let mut headers = Headers::new();
    for _ in 0..reader.number()? {
        headers.restore(reader.text()?, reader.text()?);
    }
    Some(Ok(Frame { headers, content_type, payload: reader.rest(), last: flag == 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let mut headers = Headers::new();
        headers.set("status", "ok").unwrap();
        let payload = Bytes::from_static(b"\0\x01hello");
        for last in [true, false] {
            let frame = Frame {
                headers: headers.clone(),
                content_type: "text/x".into(),
                payload: payload.clone(),
                last,
            };
            let read = parse_frame(write_frame(&Ok(frame.clone())).into()).unwrap();
            assert_eq!(read.unwrap(), frame);
        }
        for kind in KINDS {
            let read = parse_frame(write_frame(&Err(Error::new(kind, "no"))).into()).unwrap().unwrap_err();
            assert_eq!(read.kind(), kind);
        }
        assert!(parse_frame(Bytes::new()).is_none() && parse_frame(Bytes::from_static(&[99])).is_none());
    }
}
