//! Servers that compress, or do not, or not what they were sent.

use super::*;
use crate::protocol::websocket::deflate::client::ClientOffer;
use crate::protocol::websocket::deflate::codec::Codec;
use crate::protocol::websocket::deflate::contexts::Contexts;

const SHARED: Policy = Policy { keeps_contexts: false, window_bits: 15 };
const DEDICATED: Policy = Policy { keeps_contexts: true, window_bits: 12 };

/// The setting for a server that agrees on this, or on nothing.
fn deflate_setting(
    offer: ClientOffer,
    policy: Option<Policy>,
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
) -> Setting {
    let mut setting = setting(serve_deflate(policy, behaviour), 20);
    setting.door = Arc::new(Door { deflate: Some(offer), ..Door::clone(&setting.door) });
    setting
}

/// What a run against a server comes to that answers so.
fn run(behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static) -> Report {
    let setting = deflate_setting(ClientOffer::Shared, Some(SHARED), behaviour);
    super::super::echo(&setting, SHAPE, Pace::Answers).unwrap()
}

fn faults(
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
) -> serde_json::Value {
    let report = run(behaviour);
    assert!(!report.is_clean());
    json(&report)["faults"].clone()
}

/// Writes one frame, which says that it begins a compressed message or not.
fn send_frame(
    stream: &mut dyn Write,
    opcode: Opcode,
    fin: bool,
    is_compressed: bool,
    payload: &[u8],
) -> ControlFlow<()> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, opcode, fin, payload, None);
    bytes[0] |= if is_compressed { frame::RSV1 } else { 0 };
    if stream.write_all(&bytes).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// A message as a server sees it that has inflated it.
fn inflated(message: &Message) -> Vec<u8> {
    assert!(message.is_compressed, "all that is sent is compressed");
    let inflated =
        Codec::default().inflater.inflate(&mut shared(), &message.payload, 1 << 20).unwrap().to_vec();
    assert_eq!(inflated.len(), SHAPE.size);
    assert!(message.payload.len() < inflated.len() && std::str::from_utf8(&inflated).is_ok());
    inflated
}

/// What no side keeps anything of.
fn shared() -> Contexts {
    contexts(ClientOffer::Shared, SHARED)
}

fn contexts(offer: ClientOffer, policy: Policy) -> Contexts {
    Contexts::new(Terms::agree([offer.extension().as_bytes()].into_iter(), policy).unwrap())
}

#[test]
fn what_comes_back_compressed_is_found_clean() {
    let as_it_came = |message: &Message, stream: &mut dyn Write| {
        drop(inflated(message));
        send_frame(stream, message.opcode, true, true, &message.payload)
    };
    let report = run(as_it_came);
    assert!(report.is_clean(), "{}", report);
    let json = json(&report);
    assert_eq!(json["deflate"], "shared");
    let bytes = json["bytes_per_answer"].as_f64().unwrap();
    assert!(bytes > 50.0 && bytes < 180.0, "{bytes}");

    let setting = deflate_setting(ClientOffer::Shared, Some(SHARED), as_it_came);
    let report = super::super::echo(&setting, SHAPE, Pace::PerSecond(2000)).unwrap();
    assert!(report.is_clean(), "{}", report);
}

#[test]
fn what_comes_back_otherwise_is_judged_by_what_it_says() {
    let plain = |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, false, &inflated(message))
    };
    let report = run(plain);
    assert!(report.is_clean(), "{}", report);
    assert_eq!(json(&report)["bytes_per_answer"], 200.0);

    let in_fragments = |message: &Message, stream: &mut dyn Write| {
        let (first, second) = message.payload.split_at(message.payload.len() / 2);
        send_frame(stream, message.opcode, false, true, first)?;
        send_frame(stream, Opcode::Continuation, false, false, second)?;
        send_frame(stream, Opcode::Continuation, true, false, b"")
    };
    assert!(run(in_fragments).is_clean());
}

#[test]
fn wrong_answers_are_caught_however_they_are_compressed() {
    let compress =
        |payload: &[u8]| Codec::default().compressors.compress(&mut shared(), 6, payload).unwrap().to_vec();
    let upside_down = move |message: &Message, stream: &mut dyn Write| {
        let payload: Vec<u8> = inflated(message).into_iter().rev().collect();
        send_frame(stream, message.opcode, true, true, &compress(&payload))
    };
    assert_eq!(faults(upside_down), serde_json::json!({ "content": 4 }));
    let shorter = move |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, true, &compress(&inflated(message)[..SHAPE.size - 1]))
    };
    assert_eq!(faults(shorter), serde_json::json!({ "length": 4 }));
    let longer = move |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, true, &compress(&[&inflated(message)[..], b"x"].concat()))
    };
    assert_eq!(faults(longer), serde_json::json!({ "length": 4 }));
    let cut = |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, true, &message.payload[..message.payload.len() - 1])
    };
    assert_eq!(faults(cut), serde_json::json!({ "violation": 4 }));
    let unmarked = |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, false, &message.payload)
    };
    assert_eq!(faults(unmarked), serde_json::json!({ "content": 4 }));
}

#[test]
fn a_server_may_keep_its_context_where_it_was_offered_that() {
    let bytes_of = |offer| {
        let kept = std::sync::Mutex::new(std::collections::HashMap::new());
        let in_context = move |message: &Message, stream: &mut dyn Write| {
            let mut kept = kept.lock().unwrap();
            let contexts = kept.entry(thread::current().id()).or_insert_with(|| contexts(offer, DEDICATED));
            let payload = inflated(message);
            let mut codec = Codec::default();
            let compressed = codec.compressors.compress(contexts, 6, &payload).unwrap();
            send_frame(stream, message.opcode, true, true, compressed)
        };
        let setting = deflate_setting(offer, Some(DEDICATED), in_context);
        let report = super::super::echo(&setting, Shape { in_flight: 40, ..SHAPE }, Pace::Answers).unwrap();
        assert!(report.is_clean(), "{}", report);
        json(&report)["bytes_per_answer"].as_f64().unwrap()
    };
    let (alone, in_context) = (bytes_of(ClientOffer::Shared), bytes_of(ClientOffer::Dedicated));
    // Messages are the same but for their numbers.
    assert!(alone > 100.0 && in_context < 40.0, "{alone} and {in_context}");
}

#[test]
fn a_server_that_does_not_agree_is_an_error_that_says_so() {
    let setting = deflate_setting(ClientOffer::Shared, None, echo_back);
    let fault = super::super::echo(&setting, SHAPE, Pace::Answers).unwrap_err();
    assert!(matches!(fault, BenchFault::Open(OpenFault::NoDeflate)), "{fault}");
    assert_eq!(fault.to_string(), "the server does not agree on permessage-deflate");
}

#[test]
fn connections_that_agree_are_opened_left_and_held() {
    let answer = |message: &Message, stream: &mut dyn Write| {
        send_frame(stream, message.opcode, true, true, &message.payload)
    };
    let setting = deflate_setting(ClientOffer::Shared, Some(SHARED), answer);
    let setting = Setting { grace: Duration::from_secs(3), ..setting };
    assert!(super::super::connect(&setting, Parting::Handshake).unwrap().is_clean());
    assert!(super::super::idle(&setting, SHAPE).unwrap().is_clean());
    let declining = deflate_setting(ClientOffer::Shared, None, echo_back);
    let report = super::super::connect(&declining, Parting::Handshake).unwrap();
    assert_eq!(json(&report)["faults"], serde_json::json!({ "handshake": 4 }));
}
