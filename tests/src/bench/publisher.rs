//! The most that the broker takes from lapin: the same bodies, persistent and confirmed, and nothing else in the way.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::task::JoinSet;

use super::requests::Webhooks;
use super::{Measured, Plan, Window};
use crate::installation::Installation;

/// As many as the ingress has.
const CHANNELS: usize = 4;

/// Publishes bodies for as long as the plan says, with as many in flight as the plan has connections.
///
/// # Errors
/// The broker is not there, or does not confirm.
pub async fn run(installation: &Installation, webhooks: &Webhooks, plan: Plan) -> anyhow::Result<Measured> {
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await?;
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channels.push(channel);
    }
    let exchange = format!("{}.events", installation.prefix);
    let messages: std::sync::Arc<[_]> =
        webhooks.bodies().iter().map(|(event, body)| (format!("main.{event}"), body.clone())).collect();
    let window = Window::from_now(plan);
    let mut tasks = JoinSet::new();
    for number in 0..plan.connections {
        let (channel, exchange, messages) = (channels[number % CHANNELS].clone(), exchange.clone(), messages.clone());
        tasks.spawn(async move {
            let mut micros = Vec::new();
            let mut accepted = 0;
            for (routing_key, body) in messages.iter().cycle().skip(number % messages.len()) {
                if window.is_over() {
                    break;
                }
                let begun = Instant::now();
                publish(&channel, &exchange, routing_key, body).await?;
                accepted += 1;
                window.note(begun, &mut micros);
            }
            anyhow::Ok((accepted, micros))
        });
    }
    let mut sum = Measured { accepted: 0, refused: 0, micros: Vec::new(), elapsed: plan.measured };
    while let Some(ended) = tasks.join_next().await {
        let (accepted, micros) = ended??;
        sum.accepted += accepted;
        sum.micros.extend(micros);
    }
    sum.micros.sort_unstable();
    connection.close(200, "done".into()).await?;
    Ok(sum)
}

async fn publish(channel: &Channel, exchange: &str, routing_key: &str, body: &str) -> anyhow::Result<()> {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    let published = channel.basic_publish(exchange.into(), routing_key.into(), options, body.as_bytes(), persistent);
    let confirmation = published.await?.await.context("the broker did not confirm")?;
    ensure!(matches!(confirmation, Confirmation::Ack(_)), "the broker refused a message");
    Ok(())
}
